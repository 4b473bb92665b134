"""``RedisCounts`` with a real Redis: shared and keyed counts, and what happens while Redis is unavailable."""

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import RateLimitItemPerMinute
from redis.asyncio import Redis

from tests.e2e.server import DEADLINE
from tests.redis_server import RedisServer, needs_redis, redis_server
from usersvc.adapters.redis import RedisCounts
from usersvc.adapters.redis import counts as redis_counts

pytestmark = needs_redis

MANY, FEW = RateLimitItemPerMinute(1000), RateLimitItemPerMinute(1)

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def hits(counts: RedisCounts, number: int = 1) -> list[tuple[bool, int, float] | None]:
    """The results of concurrent requests of one client."""
    return await asyncio.gather(*(counts.hit(MANY, "192.0.2.1") for _ in range(number)))


async def test_processes_that_share_a_redis_count_together(server: RedisServer) -> None:
    async with RedisCounts(server.url) as one, RedisCounts(server.url) as other:
        shared = [await counts.hit(MANY, "192.0.2.1") for counts in (one, other, one)]
        separate = await other.hit(MANY, "192.0.2.2")
        few = [await counts.hit(FEW, "192.0.2.1") for counts in (one, other)]
    assert [hit and hit[:2] for hit in few] == [(True, 0), (False, 0)]
    assert [hit and hit[1] for hit in [*shared, separate]] == [999, 998, 997, 999]
    assert all(hit is not None and 0 < hit[2] <= 60 for hit in shared)


async def test_redis_gets_no_address_and_keys_expire(server: RedisServer) -> None:
    for secret in (None, b"pepper"):
        async with RedisCounts(server.url, secret=secret) as counts:
            await hits(counts)
    async with Redis.from_url(server.url) as redis:
        keys = await redis.keys("*")
        assert [await redis.ttl(key) for key in keys] == [60, 60]
    assert all(re.fullmatch(r"b'usersvc:LIMITER/[0-9a-f]{32}/1000/1/minute'", repr(key)) for key in keys)


async def test_an_unavailable_redis_is_logged_once_until_it_returns(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "usersvc")
    monkeypatch.setattr(redis_counts, "PAUSE", 0)
    async with RedisCounts(server.url) as counts:
        await hits(counts)
        server.kill()
        assert [await hits(counts) for _ in range(3)] == [[None]] * 3
        assert re.findall(r"Redis does not respond \((\w+)\)", caplog.text) == ["ConnectionError"]
        server.start()
        [hit] = await hits(counts)
        assert hit is not None
        assert hit[1] == MANY.amount - 1
        assert caplog.text.count("Redis responds again") == 1
        server.kill()
        assert [await hits(counts) for _ in range(2)] == [[None]] * 2
        assert caplog.text.count("Redis does not respond") == 2
    assert server.password not in caplog.text


async def test_requests_do_not_wait_for_a_redis_that_hangs(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_counts, "TIMEOUT", 0.05)
    monkeypatch.setattr(redis_counts, "PAUSE", 0)
    async with RedisCounts(server.url) as counts:
        server.freeze()
        for _ in range(2):
            # More than there are connections.
            assert await hits(counts, 100) == [None] * 100
        assert caplog.text.count("Redis does not respond") == 1


async def test_a_single_failure_does_not_suspend_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_counts, "TIMEOUT", 0.2)
    monkeypatch.setattr(redis_counts, "PAUSE", 3600)
    async with RedisCounts(server.url) as counts:
        for _ in range(2):
            assert await hits(counts) != [None]
            server.freeze()
            # Concurrent failures count as one.
            assert await hits(counts, 5) == [None] * 5
            server.thaw()
        async with asyncio.timeout(DEADLINE):
            await counts._redis.ping()
        assert await hits(counts) != [None]
    assert "Redis does not respond" not in caplog.text


async def test_after_two_failures_one_request_per_pause_tries_redis(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_counts, "TIMEOUT", 0.05)
    monkeypatch.setattr(redis_counts, "PAUSE", 3600)
    async with RedisCounts(server.url) as counts:
        server.freeze()
        for _ in range(2):
            assert await hits(counts) == [None]
        server.thaw()
        assert await hits(counts) == [None]
        counts._retry_at = time.monotonic()
        deadline = time.monotonic() + DEADLINE
        while not any(found := await hits(counts, 20)):
            assert time.monotonic() < deadline
            counts._retry_at = time.monotonic()
    assert sum(hit is not None for hit in found) == 1


async def test_an_unavailable_redis_is_logged_at_the_start_and_not_used(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisCounts(server.url.replace(server.password, "hunter2")) as counts:
        assert "Redis does not respond (AuthenticationError)" in caplog.text
        assert await hits(counts) == [None]
    assert "hunter2" not in caplog.text


async def test_the_certificate_of_redis_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_counts, "TIMEOUT", DEADLINE)
    with redis_server(tmp_path, CERTIFICATE) as server:
        url = server.url.replace("redis://", "rediss://").replace("127.0.0.1", "localhost")
        async with RedisCounts(url) as counts:
            assert await hits(counts) == [None]
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        async with RedisCounts(url) as counts:
            assert await hits(counts) != [None]
