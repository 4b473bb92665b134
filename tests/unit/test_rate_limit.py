import asyncio
from contextlib import suppress
from unittest.mock import Mock, patch

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from limits import RateLimitItem, RateLimitItemPerMinute

from usersvc.web.middleware.rate_limit import Hit, OwnCounts, RateLimit
from usersvc.web.problems import RequestRefused


class Clock:
    """Stands for the module ``time``."""

    now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("usersvc.web.middleware.rate_limit.time", clock)
    return clock


class SharedCounts:
    """Counts of several processes, which are unavailable while ``count`` is None."""

    def __init__(self) -> None:
        self.count: int | None = 0

    async def hit(self, rate: RateLimitItem, client: str) -> Hit | None:
        await asyncio.sleep(0)
        if self.count is None:
            return None
        self.count += 1
        return self.count <= rate.amount, max(0, rate.amount - self.count), rate.get_expiry() / 2


class Clients:
    """Clients behind a limit of three a minute."""

    def __init__(self, shared: SharedCounts | None = None) -> None:
        self.on_fallback = Mock()
        self.limit = RateLimit("test", RateLimitItemPerMinute(3), shared=shared, on_fallback=self.on_fallback)

    async def left(self, peer: str = "192.0.2.1") -> str:
        """Count a request; return the remaining requests and the seconds to the end of the window."""
        headers = await self.limit.admit(request_of(peer))
        return headers["RateLimit"].removeprefix('"test";')

    async def fails(self, peer: str = "192.0.2.1") -> None:
        self.limit.check(request_of(peer))
        await self.limit.count(request_of(peer))

    def may_try(self, peer: str = "192.0.2.1") -> bool:
        with suppress(RequestRefused):
            self.limit.check(request_of(peer))
            return True
        return False


def request_of(peer: str) -> web.Request:
    return make_mocked_request("GET", "/").clone(remote=peer)


def refusal(seconds: int) -> dict[str, str]:
    limits = {"RateLimit-Policy": '"test";q=3;w=60', "RateLimit": f'"test";r=0;t={seconds}'}
    return {**limits, "Retry-After": str(seconds)}


async def test_requests_are_limited_until_the_window_ends(clock: Clock) -> None:
    client = Clients()
    assert [await client.left(), await client.left()] == ["r=2;t=60", "r=1;t=60"]
    clock.now += 20.5
    assert await client.left() == "r=0;t=40"
    with pytest.raises(RequestRefused) as refused:
        await client.left()
    assert refused.value.headers == refusal(40)
    clock.now += 39.5
    assert await client.left() == "r=2;t=60"


async def test_failures_are_limited_until_the_window_ends(clock: Clock) -> None:
    client = Clients()
    for _ in range(3):
        # Attempts that do not fail are not counted.
        assert [client.may_try() for _ in range(10)] == [True] * 10
        await client.fails()
        clock.now += 10
    with pytest.raises(RequestRefused) as refused:
        await client.fails()
    assert refused.value.headers == refusal(30)
    clock.now += 29.9
    assert not client.may_try()
    clock.now += 0.2
    assert client.may_try()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "", False),
    ],
)
async def test_clients_are_counted_by_address_or_network(clock: Clock, one: str, other: str, same: bool) -> None:
    client = Clients()
    await client.left(one)
    assert await client.left(other) == f"r={1 if same else 2};t=60"
    while client.may_try(one):
        await client.fails(one)
    assert client.may_try(other) != same


def test_counts_of_ended_windows_are_dropped(clock: Clock) -> None:
    counts = OwnCounts(60)
    for number in range(100):
        counts.add(str(number))
        clock.now += 1
    assert len(counts) == 60


@patch("usersvc.web.middleware.rate_limit.MAX_CLIENTS", 10)
def test_memory_is_bounded_and_the_oldest_count_is_dropped_first(clock: Clock) -> None:
    counts = OwnCounts(60)
    for number in range(50):
        counts.add(str(number))
        assert len(counts) <= 10
    assert [counts.get("49")[0], counts.get("40")[0], counts.get("39")[0]] == [1, 1, 0]
    # A client that is counted already takes no memory.
    assert counts.add("40") == (2, 60)
    assert len(counts) == 10


async def test_shared_counts_decide_while_they_are_available(clock: Clock) -> None:
    shared = SharedCounts()
    client = Clients(shared)
    shared.count = 2
    assert await client.left() == "r=0;t=30"
    with pytest.raises(RequestRefused):
        await client.left()
    assert client.on_fallback.call_count == 0


async def test_own_counts_decide_while_the_shared_ones_are_unavailable(clock: Clock) -> None:
    shared = SharedCounts()
    client = Clients(shared)
    await client.left()

    shared.count = None
    assert [await client.left(), await client.left()] == ["r=1;t=60", "r=0;t=60"]
    with pytest.raises(RequestRefused):
        await client.left()
    assert await client.left("192.0.2.2") == "r=2;t=60"
    for _ in range(3):
        await client.fails("192.0.2.3")
    assert not client.may_try("192.0.2.3")
    assert client.on_fallback.call_count == 7

    shared.count = 0
    assert await client.left() == "r=2;t=30"
    assert client.on_fallback.call_count == 7


async def test_failures_in_other_processes_are_learned_with_the_next_failure(clock: Clock) -> None:
    shared = SharedCounts()
    client = Clients(shared)
    await client.fails()
    assert (shared.count, client.may_try()) == (1, True)
    shared.count = 2
    await client.fails()
    assert not client.may_try()


async def test_concurrent_failures_do_not_overtake_slow_shared_counts(clock: Clock) -> None:
    client = Clients(SharedCounts())
    results = await asyncio.gather(*(client.fails() for _ in range(100)), return_exceptions=True)
    assert sum(result is None for result in results) == 3
