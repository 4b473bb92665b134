from collections.abc import Iterator
from unittest.mock import patch

import pytest
from aiohttp.test_utils import make_mocked_request
from limits import RateLimitItemPerMinute

from usersvc.web.problems import RateLimited
from usersvc.web.rate_limit import BoundedMemory, RateLimit


class Clock:
    """Stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def time(self) -> float:
        return self.now

    monotonic = time


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with patch("usersvc.web.rate_limit.time", clock):
        yield clock


class Asking:
    """Somebody behind a limit of two a minute."""

    def __init__(self, memory: BoundedMemory) -> None:
        self._limit = RateLimit(RateLimitItemPerMinute(2), storage=memory)

    async def __call__(self, peer: str) -> dict[str, str]:
        request = make_mocked_request("POST", "/register").clone(remote=peer)
        return await self._limit.admit(request)


@pytest.fixture
def memory() -> BoundedMemory:
    return BoundedMemory()


@pytest.fixture
def ask(memory: BoundedMemory) -> Asking:
    return Asking(memory)


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
    ask = Asking(memory)
    for number in range(50):
        await ask(f"192.0.2.{number}")
        assert len(memory) <= 10
    assert (await ask("192.0.2.49"))["RateLimit"] == '"register";r=0;t=60'
    assert (await ask("192.0.2.1"))["RateLimit"] == '"register";r=1;t=60'


async def test_the_memory_is_what_the_library_asks_for(clock: Clock) -> None:
    memory = BoundedMemory()
    assert [await memory.incr("a", 60), await memory.incr("a", 60, 5)] == [1, 6]
    assert (await memory.get("a"), await memory.get("b")) == (6, 0)
    assert (await memory.get_expiry("a"), await memory.get_expiry("b")) == (clock.now + 60, clock.now)
    assert await memory.check()
    await memory.clear("a")
    assert await memory.get("a") == 0
    await memory.incr("a", 60)
    assert (await memory.reset(), len(memory)) == (1, 0)
