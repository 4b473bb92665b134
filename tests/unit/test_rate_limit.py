import asyncio
from collections.abc import Iterator
from unittest.mock import patch

import pytest
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
def clock() -> Iterator[Clock]:
    clock = Clock()
    with patch("usersvc.web.middleware.rate_limit.time", clock):
        yield clock


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


class Client:
    """Clients behind a limit of three a minute."""

    def __init__(self, shared: SharedCounts | None = None) -> None:
        self.fallbacks = 0
        self.limit = RateLimit("test", RateLimitItemPerMinute(3), shared=shared, on_fallback=self._on_fallback)

    def _on_fallback(self) -> None:
        self.fallbacks += 1

    async def left(self, peer: str = "192.0.2.1") -> str:
        """Count a request; return the remaining requests and the seconds to the end of the window."""
        headers = await self.limit.admit(make_mocked_request("POST", "/").clone(remote=peer))
        return headers["RateLimit"].removeprefix('"test";')

    async def fails(self, peer: str = "192.0.2.1") -> None:
        request = make_mocked_request("GET", "/").clone(remote=peer)
        self.limit.check(request)
        await self.limit.count(request)

    def may_try(self, peer: str = "192.0.2.1") -> bool:
        try:
            self.limit.check(make_mocked_request("GET", "/").clone(remote=peer))
        except RequestRefused:
            return False
        return True


SAME_CLIENT = pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "", False),
    ],
)


async def test_requests_are_limited_until_the_window_ends(clock: Clock) -> None:
    client = Client()
    assert [await client.left(), await client.left()] == ["r=2;t=60", "r=1;t=60"]
    clock.now += 20.5
    assert await client.left() == "r=0;t=40"
    with pytest.raises(RequestRefused) as refused:
        await client.left()
    assert refused.value.headers == {
        "RateLimit-Policy": '"test";q=3;w=60',
        "RateLimit": '"test";r=0;t=40',
        "Retry-After": "40",
    }
    clock.now += 39.5
    assert await client.left() == "r=2;t=60"


async def test_failures_are_limited_until_the_window_ends(clock: Clock) -> None:
    client = Client()
    for _ in range(3):
        # Attempts that do not fail are not counted.
        assert [client.may_try() for _ in range(10)] == [True] * 10
        await client.fails()
        clock.now += 10
    with pytest.raises(RequestRefused) as refused:
        await client.fails()
    assert refused.value.headers == {
        "RateLimit-Policy": '"test";q=3;w=60',
        "RateLimit": '"test";r=0;t=30',
        "Retry-After": "30",
    }
    clock.now += 29.9
    assert not client.may_try()
    clock.now += 0.2
    assert client.may_try()


@SAME_CLIENT
async def test_clients_are_counted_by_address_or_network(clock: Clock, one: str, other: str, same: bool) -> None:
    client = Client()
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
    client = Client(shared)
    shared.count = 2
    assert await client.left() == "r=0;t=30"
    with pytest.raises(RequestRefused):
        await client.left()
    assert client.fallbacks == 0


async def test_own_counts_decide_while_the_shared_ones_are_unavailable(clock: Clock) -> None:
    shared = SharedCounts()
    client = Client(shared)
    await client.left()

    shared.count = None
    assert [await client.left(), await client.left()] == ["r=1;t=60", "r=0;t=60"]
    with pytest.raises(RequestRefused):
        await client.left()
    assert await client.left("192.0.2.2") == "r=2;t=60"
    for _ in range(3):
        await client.fails("192.0.2.3")
    assert not client.may_try("192.0.2.3")
    assert client.fallbacks == 7

    shared.count = 0
    assert await client.left() == "r=2;t=30"
    assert client.fallbacks == 7


async def test_failures_in_other_processes_are_learned_with_the_next_failure(clock: Clock) -> None:
    shared = SharedCounts()
    client = Client(shared)
    await client.fails()
    assert (shared.count, client.may_try()) == (1, True)
    shared.count = 2
    await client.fails()
    assert not client.may_try()


async def test_concurrent_failures_do_not_overtake_slow_shared_counts(clock: Clock) -> None:
    client = Client(SharedCounts())
    results = await asyncio.gather(*(client.fails() for _ in range(100)), return_exceptions=True)
    assert sum(result is None for result in results) == 3
