"""Rate limits that several processes share in a real Redis, also while it is unavailable."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.api import assert_problem, person
from tests.e2e.launch import SHORT_PAUSE
from tests.e2e.server import DEADLINE, Service, running
from tests.redis_server import RedisServer, needs_redis, redis_server
from tests.soak.test_metrics import metrics, value

pytestmark = needs_redis


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    for name in ("redis", "one", "other"):
        (tmp_path / name).mkdir()
    with redis_server(tmp_path / "redis") as server:
        yield server


def settings(redis: RedisServer, rate: str) -> dict[str, str]:
    return {"USERSVC_RATE_LIMIT_STORE": redis.url, "USERSVC_REGISTER_RATE": rate}


def register(service: Service) -> int:
    with service.client() as client:
        return client.post("/register", json=person()).status_code


def test_two_services_share_one_limit(tmp_path: Path, redis: RedisServer) -> None:
    shared = settings(redis, "3/hour")
    with running(tmp_path / "one", shared) as one, running(tmp_path / "other", shared) as other:
        assert [register(each) for each in (one, other, one, other, one)] == [201, 201, 201, 429, 429]
        with other.client() as client:
            refused = client.post("/register", json=person())
            assert_problem(refused, 429, "rate-limited")
            assert 3500 < int(refused.headers["Retry-After"]) <= 3600
            assert value(metrics(client), "usersvc_rate_limit_fallbacks_total") == 0
        assert redis.password not in one.output + other.output


def test_two_services_share_the_limit_on_wrong_admin_tokens(tmp_path: Path, redis: RedisServer) -> None:
    token = "a-token-of-the-tests-4711"
    shared = settings(redis, "") | {"USERSVC_ADMIN_TOKEN": token}

    def status(service: Service, given: str) -> int:
        with service.client() as client:
            return client.get("/users", headers={"Authorization": f"Bearer {given}"}).status_code

    with running(tmp_path / "one", shared) as one, running(tmp_path / "other", shared) as other:
        assert [status(one, "wrong") for _ in range(9)] == [401] * 9
        assert status(other, token) == 200
        assert [status(other, "wrong") for _ in range(2)] == [401, 429]
        assert [status(other, token), status(one, "wrong"), status(one, token)] == [429, 401, 429]


def test_without_redis_each_service_limits_registrations(tmp_path: Path, redis: RedisServer) -> None:
    with running(tmp_path, settings(redis, "3/hour"), SHORT_PAUSE) as service, service.client() as client:
        assert register(service) == 201
        redis.freeze()
        assert [register(service) for _ in range(4)] == [201, 201, 429, 429]
        assert client.get("/readyz").status_code == 200
        assert value(metrics(client), "usersvc_rate_limit_fallbacks_total") == 4
        redis.thaw()
        deadline = time.monotonic() + DEADLINE
        while "Redis responds again" not in service.output:
            register(service)
            assert time.monotonic() < deadline
        assert service.output.count("Redis does not respond") == 1
        assert redis.password not in service.output
