import asyncio
from datetime import UTC, datetime

import pytest

from tests.fakes import QuickHasher, quick_service
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.read_models import Order, UserView
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

ALICE = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


async def test_registered_user_and_event_are_stored() -> None:
    users = InMemoryUsers()
    now = datetime(2026, 1, 31, 9, 30, 0, 123, tzinfo=UTC)
    woken: list[int] = []

    service = UserRegistrationService(
        users, QuickHasher(), clock=lambda: now, on_registered=lambda: woken.append(len(users.outbox._entries))
    )
    user = (await service.register(email="alice@example.com", password="correct horse battery", age=30)).user

    assert user["registered_at"] == "2026-01-31T09:30:00.000123Z"
    assert (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users == [user]
    [entry] = await users.outbox.entries()
    assert (str(entry.event.user_id), entry.event.email) == (user["id"], "alice@example.com")
    # After the entry was stored.
    assert woken == [1]


async def test_refused_registration_stores_no_event() -> None:
    users = InMemoryUsers()
    service = UserRegistrationService(users, QuickHasher())
    await service.register(email="alice@example.com", password="correct horse battery", age=30)

    with pytest.raises(EmailAlreadyRegistered):
        await service.register(email="ALICE@example.com", password="correct horse battery", age=30)
    with pytest.raises(ValidationFailed):
        await service.register(email="bob@example.com", password="correct horse battery", age=3)

    assert len(await users.outbox.entries()) == 1


async def test_password_is_hashed_only_if_no_rule_is_broken() -> None:
    hashed: list[Password] = []

    class CountingHasher(QuickHasher):
        async def hash(self, password: Password) -> PasswordHash:
            hashed.append(password)
            return await super().hash(password)

    service = UserRegistrationService(InMemoryUsers(), CountingHasher())
    with pytest.raises(ValidationFailed):
        await service.register(email="nobody", password="correct horse battery", age=30)
    assert hashed == []
    await service.register(email="alice@example.com", password="e\u0301" * 8, age=30)
    assert hashed == [Password("é" * 8)]


async def test_minimum_length_can_be_raised() -> None:
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), password_min_length=15)

    with pytest.raises(ValidationFailed, match="password: too-short"):
        await service.register(email="alice@example.com", password="x" * 14, age=30)
    assert [violation.code for violation in service.violations(password="x" * 14)] == ["too-short"]


async def test_time_of_registration_is_read_after_hashing() -> None:
    hour = 8

    class LongHasher(QuickHasher):
        async def hash(self, password: Password) -> PasswordHash:
            nonlocal hour
            hour = 9
            return await super().hash(password)

    service = UserRegistrationService(
        InMemoryUsers(), LongHasher(), clock=lambda: datetime(2026, 1, 31, hour, tzinfo=UTC)
    )
    user = (await service.register(email="alice@example.com", password="correct horse battery", age=30)).user
    assert user["registered_at"].startswith("2026-01-31T09:")


async def test_default_clock_is_in_utc() -> None:
    before = datetime.now(UTC)
    user = (await quick_service().register(email="alice@example.com", password="correct horse battery", age=30)).user
    assert before <= datetime.fromisoformat(user["registered_at"]) <= datetime.now(UTC)


def test_views_have_no_password() -> None:
    assert not any("password" in name for name in UserView.__annotations__)


class SlowUsers(InMemoryUsers):
    """Waits before or after it stores a user."""

    def __init__(self, *, stores_first: bool) -> None:
        super().__init__()
        self.started = asyncio.Event()
        self._stores_first = stores_first

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        if self._stores_first:
            await super().add(user, key=key)
        self.started.set()
        await asyncio.Event().wait()


@pytest.mark.parametrize("is_stored", [False, True])
async def test_cancellation_while_storing_wakes_the_delivery(is_stored: bool) -> None:
    users, woken = SlowUsers(stores_first=is_stored), []
    service = UserRegistrationService(users, QuickHasher(), on_registered=lambda: woken.append(1))
    registering = asyncio.create_task(service.register(email="a@example.com", password="correct horse", age=30))
    await users.started.wait()
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering

    stored = (await users.page(limit=9, order=Order.ASC, after=None, mailbox=None)).users
    assert len(stored) == len(await users.outbox.entries()) == int(is_stored)
    assert woken == [1]


async def test_cancellation_while_hashing_frees_the_slot() -> None:
    async with BcryptPasswordHasher(cost=4, workers=1, queue=0) as hasher:
        users = InMemoryUsers()
        service = UserRegistrationService(users, hasher)
        for _ in range(3):
            registering = asyncio.create_task(service.register(email="a@example.com", password="correct horse", age=30))
            await asyncio.sleep(0)
            registering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await registering
            # A hash that had started keeps its thread until it ends.
            while hasher._threads._pending:  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.001)
        assert (await users.page(limit=9, order=Order.ASC, after=None, mailbox=None)).users == []
