from collections.abc import Iterator
from unittest.mock import patch

import pytest
from aiohttp.test_utils import make_mocked_request
from limits import RateLimitItem, RateLimitItemPerMinute

from usersvc.web.problems import RateLimited
from usersvc.web.rate_limit import BoundedMemory, Counts, FallingBack, Hit, OwnCounts, RateLimit


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
    with patch("usersvc.web.rate_limit.time", clock):
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
    memory = BoundedMemory(most=10)
    ask = Asking(OwnCounts(memory))
    for number in range(50):
        await ask(f"192.0.2.{number}")
        assert len(memory) <= 10
    assert (await ask("192.0.2.49"))["RateLimit"] == '"register";r=0;t=60'
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=1;t=60'


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
    ask = Asking(FallingBack(elsewhere, OwnCounts(memory), lambda: fallbacks.append("")))
    elsewhere.count = 1
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=0;t=30'
    with pytest.raises(RateLimited):
        await ask("192.0.2.1")
    assert not fallbacks


async def test_without_the_shared_counts_those_of_the_process_go_on(memory: BoundedMemory, clock: Clock) -> None:
    elsewhere, fallbacks = Elsewhere(), list[str]()
    ask = Asking(FallingBack(elsewhere, OwnCounts(memory), lambda: fallbacks.append("")))
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
