"""One limit for several processes, in a real Redis, and what becomes of it when Redis is away."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.api import assert_problem, person
from tests.e2e.launch import SHORT_PAUSE
from tests.e2e.server import DEADLINE, Service, free_port, running
from tests.redis_server import RedisServer, needs_redis, redis_server
from tests.soak.test_metrics import metrics, value

pytestmark = needs_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder) as server:
        yield server


def settings(redis: RedisServer, rate: str) -> dict[str, str]:
    return {"USERSVC_RATE_LIMIT_STORE": redis.url, "USERSVC_REGISTER_RATE": rate}


def asked(service: Service) -> int:
    """Register over a connection of its own, and give the status."""
    with service.client() as client:
        return client.post("/register", json=person()).status_code


def test_two_services_share_one_limit(tmp_path: Path, redis: RedisServer) -> None:
    folders = tmp_path / "one", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    with running(folders[0], settings(redis, "3/hour")) as one, running(folders[1], settings(redis, "3/hour")) as other:
        assert [asked(each) for each in (one, other, one, other, one)] == [201, 201, 201, 429, 429]
        with other.client() as client:
            refused = client.post("/register", json=person())
            assert_problem(refused, 429, "rate-limited")
            assert 3500 < int(refused.headers["Retry-After"]) <= 3600
            assert value(metrics(client), "usersvc_rate_limit_fallbacks_total") == 0
        assert redis.password not in one.output + other.output


def test_two_services_share_the_limit_on_wrong_admin_tokens(tmp_path: Path, redis: RedisServer) -> None:
    folders = tmp_path / "one", tmp_path / "other"
    for folder in folders:
        folder.mkdir()
    token = "a-token-of-the-tests-4711"
    # With nothing else to share.
    ours = settings(redis, "") | {"USERSVC_ADMIN_TOKEN": token}
    with running(folders[0], ours) as one, running(folders[1], ours) as other:

        def status(service: Service, given: str) -> int:
            with service.client() as client:
                return client.get("/users", headers={"Authorization": f"Bearer {given}"}).status_code

        assert [status(one, "wrong") for _ in range(9)] == [401] * 9
        assert status(other, token) == 200
        assert [status(other, "wrong") for _ in range(2)] == [401, 429]
        assert [status(other, token), status(one, "wrong"), status(one, token)] == [429, 401, 429]


def test_two_workers_share_one_limit(tmp_path: Path, redis: RedisServer) -> None:
    two = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port())}
    with running(tmp_path, settings(redis, "20/hour") | two) as service:
        # A connection each, so that the system spreads them: alone, each worker would admit 20.
        assert Counter(asked(service) for _ in range(60)) == {201: 20, 429: 40}


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_without_redis_registrations_go_on_and_are_limited(tmp_path: Path, redis: RedisServer, fault: str) -> None:
    with running(tmp_path, settings(redis, "3/hour"), SHORT_PAUSE) as service, service.client() as client:
        assert asked(service) == 201
        redis.kill() if fault == "killed" else redis.freeze()
        assert [asked(service) for _ in range(4)] == [201, 201, 429, 429]
        assert client.get("/readyz").status_code == 200
        assert value(metrics(client), "usersvc_rate_limit_fallbacks_total") == 4
        assert service.output.count("Redis does not answer") == 1

        redis.start() if fault == "killed" else redis.thaw()
        deadline = time.monotonic() + DEADLINE
        while "Redis answers again" not in service.output:
            asked(service)
            assert time.monotonic() < deadline
        before = value(metrics(client), "usersvc_rate_limit_fallbacks_total")
        asked(service)
        assert value(metrics(client), "usersvc_rate_limit_fallbacks_total") == before
        assert service.output.count("Redis does not answer") == 1
        assert redis.password not in service.output


def test_a_redis_that_is_away_does_not_keep_the_service_from_starting(tmp_path: Path, redis: RedisServer) -> None:
    redis.kill()
    with running(tmp_path, settings(redis, "1/hour")) as service:
        service.wait_for_output("Redis does not answer")
        assert [asked(service), asked(service)] == [201, 429]
