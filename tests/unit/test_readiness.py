"""The check of the store behind ``/readyz``: how often it runs, and who shares it."""

import asyncio
from contextlib import suppress

import pytest

from tests.fake_time import in_fake_time
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.errors import StorageUnavailable
from usersvc.application.readiness import Readiness


class CheckedUsers(InMemoryUsers):
    """A store that counts its checks, which fail while it is broken."""

    def __init__(self, duration: float = 0.0) -> None:
        super().__init__()
        self.checks = 0
        self.broken = False
        self._duration = duration

    async def check(self) -> None:
        self.checks += 1
        broken = self.broken
        await asyncio.sleep(self._duration)
        if broken:
            raise StorageUnavailable("out of order")


@in_fake_time
async def test_concurrent_callers_share_one_check_however_long_it_takes() -> None:
    users = CheckedUsers(duration=4.0)
    readiness = Readiness(users)
    callers = [asyncio.create_task(readiness.check()) for _ in range(10)]
    for _ in range(10):
        await asyncio.sleep(0.3)
        callers.append(asyncio.create_task(readiness.check()))
    await asyncio.gather(*callers)
    assert users.checks == 1
    # The result is older than a second, counted from the start of the check.
    await readiness.check()
    assert users.checks == 2


@in_fake_time
async def test_a_result_is_at_most_one_second_old() -> None:
    users = CheckedUsers()
    readiness = Readiness(users)
    await readiness.check()

    users.broken = True
    await asyncio.sleep(0.99)
    await readiness.check()
    await asyncio.sleep(0.01)
    with pytest.raises(StorageUnavailable):
        await readiness.check()

    users.broken = False
    await asyncio.sleep(0.99)
    with pytest.raises(StorageUnavailable):
        await readiness.check()
    await asyncio.sleep(0.01)
    await readiness.check()
    assert users.checks == 3


@in_fake_time
async def test_a_cancelled_caller_does_not_cancel_the_check_of_the_others() -> None:
    users = CheckedUsers(duration=0.5)
    users.broken = True
    readiness = Readiness(users)
    leaving, staying = asyncio.create_task(readiness.check()), asyncio.create_task(readiness.check())
    await asyncio.sleep(0.1)
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    with pytest.raises(StorageUnavailable):
        await staying
    assert users.checks == 1
