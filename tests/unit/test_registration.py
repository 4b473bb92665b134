import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fakes import QuickHasher, quick_service
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, UserView
from usersvc.application.registration import IdempotencyKeyReused, Registered, UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

ALICE: dict[str, Any] = {"email": "Alice@example.com", "password": "correct horse battery", "age": 30}
BOB = ALICE | {"email": "bob@example.com"}
NOW = datetime(2026, 1, 31, 9, 30, 0, 123, tzinfo=UTC)


class CountingHasher(QuickHasher):
    def __init__(self) -> None:
        self.hashed: list[Password] = []
        self.verified: list[Password] = []

    async def hash(self, password: Password) -> PasswordHash:
        self.hashed.append(password)
        return await super().hash(password)

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        self.verified.append(password)
        return await super().verify(password, password_hash)


async def stored(users: InMemoryUsers) -> list[UserView]:
    return (await users.page(limit=9, order=Order.ASC, after=None, mailbox=None)).users


async def test_registered_user_and_event_are_stored() -> None:
    users = InMemoryUsers()
    woken: list[int] = []
    service = UserRegistrationService(
        users, QuickHasher(), clock=lambda: NOW, on_registered=lambda: woken.append(len(users.outbox._entries))
    )

    user = (await service.register(**ALICE)).user

    assert user["registered_at"] == "2026-01-31T09:30:00.000123Z"
    assert await stored(users) == [user]
    assert set(UserView.__annotations__) == {"id", "email", "age", "registered_at"}
    [entry] = await users.outbox.entries()
    assert (str(entry.event.user_id), entry.event.email) == (user["id"], "Alice@example.com")
    # After the entry was stored.
    assert woken == [1]


async def test_password_is_hashed_only_if_no_rule_is_broken() -> None:
    hasher = CountingHasher()
    service = UserRegistrationService(InMemoryUsers(), hasher)
    with pytest.raises(ValidationFailed):
        await service.register(**ALICE | {"email": "nobody"})
    assert hasher.hashed == []
    await service.register(**ALICE | {"password": "e\u0301" * 8})
    assert hasher.hashed == [Password("é" * 8)]


async def test_time_of_registration_is_read_after_hashing() -> None:
    now = NOW

    class LongHasher(QuickHasher):
        async def hash(self, password: Password) -> PasswordHash:
            nonlocal now
            now += timedelta(hours=1)
            return await super().hash(password)

    service = UserRegistrationService(InMemoryUsers(), LongHasher(), clock=lambda: now)
    assert (await service.register(**ALICE)).user["registered_at"].startswith("2026-01-31T10:30")


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
    registering = asyncio.create_task(service.register(**ALICE))
    await users.started.wait()
    registering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await registering

    assert len(await stored(users)) == len(await users.outbox.entries()) == int(is_stored)
    assert woken == [1]


# --- with an idempotency key ---


async def test_repeat_returns_the_first_result() -> None:
    users, woken = InMemoryUsers(), []
    service = UserRegistrationService(users, QuickHasher(), on_registered=lambda: woken.append(1))

    first = await service.register(**ALICE, key="k")
    second = await service.register(**ALICE, key="k")

    assert (first.replayed, second) == (False, Registered(first.user, replayed=True))
    assert (len(await users.outbox.entries()), len(woken)) == (1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"email": "alice@example.com"},
        {"age": 31},
        {"password": "another horse battery"},
    ],
)
async def test_another_registration_is_refused_and_any_repeat_costs_one_hash(other: dict[str, Any]) -> None:
    hasher = CountingHasher()
    service = UserRegistrationService(InMemoryUsers(), hasher)
    await service.register(**ALICE, key="k")
    assert (len(hasher.hashed), len(hasher.verified)) == (1, 0)
    with pytest.raises(IdempotencyKeyReused) if other else nullcontext():
        await service.register(**ALICE | other, key="k")
    assert (len(hasher.hashed), len(hasher.verified)) == (1, 1)


async def test_failure_does_not_use_up_the_key() -> None:
    service = quick_service()
    await service.register(**ALICE)
    with pytest.raises(ValidationFailed):
        await service.register(**ALICE | {"age": 3}, key="k")
    with pytest.raises(EmailAlreadyRegistered):
        await service.register(**ALICE, key="k")
    assert not (await service.register(**BOB, key="k")).replayed


async def test_loser_of_a_race_returns_the_user_of_the_winner() -> None:
    class RacingUsers(InMemoryUsers):
        """A concurrent request registers with the same key at the last moment."""

        winner: UserRegistrationService | None = None

        async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
            racing, self.winner = self.winner, None
            if racing is not None:
                await racing.register(**ALICE, key="k")
            await super().add(user, key=key)

    users = RacingUsers()
    users.winner = quick_service(users)
    outcome = await quick_service(users).register(**ALICE, key="k")

    assert outcome.replayed
    assert await stored(users) == [outcome.user]


async def test_key_that_disappears_after_it_was_found_is_refused() -> None:
    class ForgetfulUsers(InMemoryUsers):
        async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
            return None

        async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
            raise IdempotencyKeyUsed

    with pytest.raises(IdempotencyKeyReused):
        await quick_service(ForgetfulUsers()).register(**ALICE, key="k")


async def test_repeat_after_a_change_of_the_pepper_is_refused() -> None:
    class OtherHasher(QuickHasher):
        async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
            raise ValueError("another pepper")

    users = InMemoryUsers()
    await quick_service(users).register(**ALICE, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await UserRegistrationService(users, OtherHasher()).register(**ALICE, key="k")


async def test_key_can_be_used_again_after_a_day() -> None:
    now = NOW
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), clock=lambda: now)
    await service.register(**ALICE, key="k")
    now += timedelta(hours=24)
    assert not (await service.register(**BOB, key="k")).replayed


async def test_stored_key_reveals_no_secret() -> None:
    users = InMemoryUsers()
    await quick_service(users).register(**ALICE, key="my-secret-key")
    earlier = await users.registered_with(IdempotencyKey.named("my-secret-key"), at=datetime.now(UTC))
    assert earlier is not None
    assert earlier.password_hash not in repr(earlier)
    assert "my-secret-key" not in repr(users.__dict__)
