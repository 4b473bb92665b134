import asyncio
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from aiohttp.test_utils import make_mocked_request
from limits import RateLimitItem, RateLimitItemPerMinute

from usersvc.web.middleware.rate_limit import FailureLimit, RateLimit
from usersvc.web.problems import RateLimited
from usersvc.web.request_counts import BoundedMemory, Counts, FallbackCounts, Hit, OwnCounts


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 7


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with patch("usersvc.web.middleware.rate_limit.time", clock), patch("usersvc.web.request_counts.time", clock):
        yield clock


class Asking:
    """Somebody behind a limit of two a minute."""

    def __init__(self, counts: Counts) -> None:
        self._limit = RateLimit(RateLimitItemPerMinute(2), counts=counts)

    async def __call__(self, peer: str) -> dict[str, str]:
        request = make_mocked_request("POST", "/register").clone(remote=peer)
        return await self._limit.admit(request)


@pytest.fixture
def memory() -> BoundedMemory:
    return BoundedMemory()


@pytest.fixture
def ask(memory: BoundedMemory) -> Asking:
    return Asking(OwnCounts(memory))


async def test_who_asks_too_often_is_told_when_to_come_again(ask: Asking, clock: Clock) -> None:
    assert await ask("192.0.2.1") == {"RateLimit-Policy": '"register";q=2;w=60', "RateLimit": '"register";r=1;t=60'}
    clock.now += 20.5
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=0;t=40'
    with pytest.raises(RateLimited) as refused:
        await ask("192.0.2.1")
    assert refused.value.headers == {
        "RateLimit-Policy": '"register";q=2;w=60',
        "RateLimit": '"register";r=0;t=40',
        "Retry-After": "40",
    }

    clock.now += 40
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=1;t=60'


async def test_each_has_a_limit_of_his_own(ask: Asking, clock: Clock) -> None:
    for peer in ("192.0.2.1", "192.0.2.2", "2001:db8::1", ""):
        assert [(await ask(peer))["RateLimit"][:14] for _ in range(2)] == ['"register";r=1', '"register";r=0']


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
async def test_a_network_of_64_bits_counts_as_one(ask: Asking, clock: Clock, one: str, other: str, same: bool) -> None:
    await ask(one)
    assert (await ask(other))["RateLimit"] == f'"register";r={0 if same else 1};t=60'


async def test_what_has_ended_takes_no_memory(ask: Asking, memory: BoundedMemory, clock: Clock) -> None:
    for number in range(100):
        await ask(f"192.0.2.{number}")
        clock.now += 1
    assert len(memory) == 60


async def test_memory_is_bounded_and_the_oldest_goes_first(clock: Clock) -> None:
    memory = BoundedMemory(max_clients=10)
    ask = Asking(OwnCounts(memory))
    for number in range(50):
        await ask(f"192.0.2.{number}")
        assert len(memory) <= 10
    assert (await ask("192.0.2.49"))["RateLimit"] == '"register";r=0;t=60'
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=1;t=60'


async def test_a_full_memory_drops_no_count_for_a_key_that_it_has() -> None:
    memory = BoundedMemory(max_clients=2)
    for key in ("oldest", "newest", "oldest"):
        await memory.incr(key, 60)
    assert (await memory.get("oldest"), await memory.get("newest")) == (2, 1)


class Elsewhere:
    """Counts of several processes, which may be out of reach."""

    def __init__(self) -> None:
        self.count: int | None = 0

    async def hit(self, rate: RateLimitItem, client: str) -> Hit | None:
        if self.count is None:
            return None
        self.count += 1
        return self.count <= rate.amount, max(0, rate.amount - self.count), rate.get_expiry() / 2


async def test_shared_counts_are_what_counts(memory: BoundedMemory, clock: Clock) -> None:
    elsewhere, fallbacks = Elsewhere(), list[str]()
    ask = Asking(FallbackCounts(elsewhere, OwnCounts(memory), lambda: fallbacks.append("")))
    elsewhere.count = 1
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=0;t=30'
    with pytest.raises(RateLimited):
        await ask("192.0.2.1")
    assert not fallbacks


async def test_without_the_shared_counts_those_of_the_process_go_on(memory: BoundedMemory, clock: Clock) -> None:
    elsewhere, fallbacks = Elsewhere(), list[str]()
    ask = Asking(FallbackCounts(elsewhere, OwnCounts(memory), lambda: fallbacks.append("")))
    await ask("192.0.2.1")

    elsewhere.count = None
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=0;t=60'
    with pytest.raises(RateLimited):
        await ask("192.0.2.1")
    assert (await ask("192.0.2.2"))["RateLimit"] == '"register";r=1;t=60'
    assert len(fallbacks) == 3

    elsewhere.count = 0
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=1;t=30'
    assert len(fallbacks) == 3


class Guessing:
    """A client that fails behind a limit of three failures a minute."""

    def __init__(self, shared: Elsewhere | None = None) -> None:
        self._limit = FailureLimit(RateLimitItemPerMinute(3), shared=shared)

    async def fails(self, peer: str = "192.0.2.1") -> None:
        request = make_mocked_request("GET", "/users").clone(remote=peer)
        await self._limit.check(request)
        await self._limit.count(request)

    async def may_try(self, peer: str = "192.0.2.1") -> bool:
        try:
            await self._limit.check(make_mocked_request("GET", "/users").clone(remote=peer))
        except RateLimited:
            return False
        return True


async def test_failures_are_limited_until_the_window_ends(clock: Clock) -> None:
    guessing = Guessing()
    for _ in range(3):
        assert await guessing.may_try()
        await guessing.fails()
        clock.now += 10
    with pytest.raises(RateLimited) as refused:
        await guessing.fails()
    assert refused.value.headers == {
        "RateLimit-Policy": '"admin-token";q=3;w=60',
        "RateLimit": '"admin-token";r=0;t=30',
        "Retry-After": "30",
    }
    clock.now += 29.9
    assert not await guessing.may_try()
    clock.now += 0.1
    assert await guessing.may_try()


async def test_attempts_that_do_not_fail_are_not_counted(clock: Clock) -> None:
    guessing = Guessing()
    for _ in range(100):
        assert await guessing.may_try()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
    ],
)
async def test_failures_of_one_client_do_not_affect_another(clock: Clock, one: str, other: str, same: bool) -> None:
    guessing = Guessing()
    for _ in range(3):
        await guessing.fails(one)
    assert not await guessing.may_try(one)
    assert await guessing.may_try(other) != same


async def test_failures_in_other_processes_are_learned_with_the_next_failure(clock: Clock) -> None:
    elsewhere = Elsewhere()
    guessing = Guessing(elsewhere)
    await guessing.fails()
    assert (elsewhere.count, await guessing.may_try()) == (1, True)
    elsewhere.count = 2
    await guessing.fails()
    assert not await guessing.may_try()


async def test_without_the_shared_counts_failures_are_limited_by_each_process(clock: Clock) -> None:
    elsewhere = Elsewhere()
    elsewhere.count = None
    guessing = Guessing(elsewhere)
    for _ in range(3):
        await guessing.fails()
    assert not await guessing.may_try()


async def test_concurrent_failures_do_not_overtake_slow_shared_counts(clock: Clock) -> None:
    class Slow(Elsewhere):
        async def hit(self, rate: RateLimitItem, client: str) -> Hit | None:
            await asyncio.sleep(0)
            return await super().hit(rate, client)

    guessing = Guessing(Slow())
    outcomes = await asyncio.gather(*(guessing.fails() for _ in range(100)), return_exceptions=True)
    assert sum(outcome is None for outcome in outcomes) == 3
