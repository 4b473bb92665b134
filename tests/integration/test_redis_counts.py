"""Counts in a real Redis: shared, hidden, passing; and what is told when Redis is away."""

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from limits import RateLimitItemPerMinute, RateLimitItemPerSecond
from redis.asyncio import Redis

from tests.e2e.server import DEADLINE
from tests.redis_server import RedisServer, needs_redis, redis_server
from usersvc.adapters.redis.counts import RedisCounts

pytestmark = needs_redis

MANY, SELDOM = RateLimitItemPerMinute(1000), RateLimitItemPerSecond(1, 2)

CERTIFICATE = Path(__file__).with_name("localhost.pem")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


async def test_those_who_share_a_redis_count_together(server: RedisServer) -> None:
    async with RedisCounts(server.url) as one, RedisCounts(server.url) as other:
        hits = [await counts.hit(MANY, "192.0.2.1") for counts in (one, other, one)]
        elsewhere = await other.hit(MANY, "192.0.2.2")
    assert [hit and hit[1] for hit in [*hits, elsewhere]] == [999, 998, 997, 999]
    assert all(hit is not None and 0 < hit[2] <= 60 for hit in hits)


async def test_who_comes_too_often_is_not_admitted(server: RedisServer) -> None:
    async with RedisCounts(server.url) as counts:
        hits = [await counts.hit(RateLimitItemPerMinute(2), "192.0.2.1") for _ in range(3)]
    assert [hit and hit[:2] for hit in hits] == [(True, 1), (True, 0), (False, 0)]


async def test_counting_at_once_misses_nobody(server: RedisServer) -> None:
    async with RedisCounts(server.url, timeout=DEADLINE) as one, RedisCounts(server.url, timeout=DEADLINE) as other:
        few = RateLimitItemPerMinute(150)
        hits = await asyncio.gather(*(counts.hit(few, "192.0.2.1") for counts in (one, other) for _ in range(200)))
    assert [hit is not None and hit[0] for hit in hits].count(True) == 150


async def test_a_window_ends(server: RedisServer) -> None:
    async with RedisCounts(server.url) as counts:
        first = await counts.hit(SELDOM, "192.0.2.1")
        second = await counts.hit(SELDOM, "192.0.2.1")
        assert [hit and hit[0] for hit in (first, second)] == [True, False]
        deadline = time.monotonic() + DEADLINE
        while (hit := await counts.hit(SELDOM, "192.0.2.1")) is not None and not hit[0]:
            assert time.monotonic() < deadline
    assert hit is not None


async def test_redis_sees_no_address_and_forgets(server: RedisServer) -> None:
    async with RedisCounts(server.url) as plain, RedisCounts(server.url, secret=b"pepper") as keyed:
        await plain.hit(MANY, "192.0.2.1")
        await keyed.hit(MANY, "192.0.2.1")
    async with Redis.from_url(server.url) as redis:
        keys = await redis.keys("*")
        assert [await redis.ttl(key) for key in keys] == [60, 60]
    assert len(keys) == 2
    assert all(re.fullmatch(r"b'usersvc:LIMITER/[0-9a-f]{32}/1000/1/minute'", repr(key)) for key in keys)


async def test_while_redis_is_gone_there_is_no_answer_and_one_warning(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "usersvc")
    async with RedisCounts(server.url, pause=0) as counts:
        await counts.hit(MANY, "192.0.2.1")
        server.kill()
        assert [await counts.hit(MANY, "192.0.2.1") for _ in range(3)] == [None] * 3
        assert re.findall(r"Redis does not answer \((\w+)\)", caplog.text) == ["ConnectionError"]

        server.start()
        hit = await counts.hit(MANY, "192.0.2.1")
        assert hit is not None
        assert hit[1] == MANY.amount - 1
        assert caplog.text.count("Redis answers again") == 1

        server.kill()
        assert [await counts.hit(MANY, "192.0.2.1") for _ in range(2)] == [None] * 2
        assert caplog.text.count("Redis does not answer") == 2
    assert server.password not in caplog.text


async def test_while_redis_hangs_nobody_waits_for_it(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with RedisCounts(server.url, timeout=0.05, pause=0) as counts:
        await counts.hit(MANY, "192.0.2.1")
        server.freeze()
        # More than there are connections.
        for _ in range(2):
            assert await asyncio.gather(*(counts.hit(MANY, "192.0.2.1") for _ in range(100))) == [None] * 100
        assert caplog.text.count("Redis does not answer") == 1
        server.thaw()
        deadline = time.monotonic() + DEADLINE
        while await counts.hit(MANY, "192.0.2.1") is None:
            assert time.monotonic() < deadline


async def test_one_answer_that_does_not_come_is_no_reason_to_ask_no_more(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisCounts(server.url, timeout=0.2, pause=3600) as counts:
        for _ in range(2):
            assert await counts.hit(MANY, "192.0.2.1") is not None
            server.freeze()
            # All at once is one failure.
            assert await asyncio.gather(*(counts.hit(MANY, "192.0.2.1") for _ in range(5))) == [None] * 5
            server.thaw()
        async with asyncio.timeout(DEADLINE):
            await counts._redis.ping()
        assert await counts.hit(MANY, "192.0.2.1") is not None
    assert "Redis does not answer" not in caplog.text


async def test_what_has_failed_is_left_alone_for_a_while(server: RedisServer) -> None:
    async with RedisCounts(server.url, pause=3600) as counts:
        server.kill()
        for _ in range(2):
            assert await counts.hit(MANY, "192.0.2.1") is None
        server.start()
        # It would answer, and is not asked.
        assert await counts.hit(MANY, "192.0.2.1") is None


async def test_one_alone_finds_out_whether_redis_is_back(server: RedisServer) -> None:
    async with RedisCounts(server.url, timeout=0.05, pause=0.2) as counts:
        server.freeze()
        for _ in range(2):
            assert await counts.hit(MANY, "192.0.2.1") is None
        deadline = time.monotonic() + DEADLINE
        server.thaw()
        while not any(hits := await asyncio.gather(*(counts.hit(MANY, "192.0.2.1") for _ in range(20)))):
            assert time.monotonic() < deadline
    assert sum(hit is not None for hit in hits) == 1


async def test_the_start_tells_that_redis_is_away_and_goes_on(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill()
    async with RedisCounts(server.url) as counts:
        assert "Redis does not answer (ConnectionError)" in caplog.text
        assert await counts.hit(MANY, "192.0.2.1") is None


async def test_a_redis_that_refuses_is_one_that_is_away(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    wrong = server.url.replace(server.password, "hunter2")
    async with RedisCounts(wrong, pause=0) as counts:
        assert await counts.hit(MANY, "192.0.2.1") is None
    assert "Redis does not answer (AuthenticationError)" in caplog.text
    assert "hunter2" not in caplog.text


async def test_redis_may_be_behind_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_server(tmp_path, CERTIFICATE) as server:
        url = server.url.replace("redis://", "rediss://").replace("127.0.0.1", "localhost")
        async with RedisCounts(url, timeout=DEADLINE) as counts:
            # Nobody vouches for its certificate.
            assert await counts.hit(MANY, "192.0.2.1") is None
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        async with RedisCounts(url, timeout=DEADLINE) as counts:
            assert await counts.hit(MANY, "192.0.2.1") is not None
