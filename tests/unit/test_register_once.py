from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fakes import QuickHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.registration import IdempotencyKeyReused, Registered, UserRegistrationService
from usersvc.application.user_queries import UserQueryService
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

ALICE: dict[str, Any] = {"email": "Alice@example.com", "password": "correct horse battery", "age": 30}
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class CountingHasher(QuickHasher):
    """A ``QuickHasher`` that counts."""

    def __init__(self) -> None:
        self.hashed = self.verified = 0

    async def hash(self, password: Password) -> PasswordHash:
        self.hashed += 1
        return await super().hash(password)

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        self.verified += 1
        return await super().verify(password, password_hash)


def service(users: InMemoryUsers | None = None, hasher: QuickHasher | None = None) -> UserRegistrationService:
    return UserRegistrationService(users or InMemoryUsers(), hasher or QuickHasher())


async def test_repeat_returns_the_first_result_and_hashes_nothing() -> None:
    hasher, woken = CountingHasher(), []
    users = InMemoryUsers()
    registration = UserRegistrationService(users, hasher, on_registered=lambda: woken.append(1))

    first = await registration.register(**ALICE, key="k")
    second = await registration.register(**ALICE, key="k")

    assert (first.replayed, second) == (False, Registered(first.user, replayed=True))
    assert (hasher.hashed, hasher.verified, len(woken)) == (1, 1, 1)
    assert len(await users.outbox.entries()) == 1


@pytest.mark.parametrize(
    "other",
    [{"email": "bob@example.com"}, {"email": "alice@example.com"}, {"age": 31}, {"password": "another horse battery"}],
)
async def test_another_registration_with_the_same_key_is_refused(other: dict[str, Any]) -> None:
    registration = service()
    await registration.register(**ALICE, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await registration.register(**ALICE | other, key="k")


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"email": "bob@example.com"},
        {"age": 31},
        {"password": "another horse battery"},
        {"email": "bob@example.com", "age": 31, "password": "another horse battery"},
    ],
)
async def test_a_repeat_costs_as_many_hashes_as_a_registration(other: dict[str, Any]) -> None:
    hasher = CountingHasher()
    registration = service(hasher=hasher)
    await registration.register(**ALICE, key="k")
    assert (hasher.hashed, hasher.verified) == (1, 0)
    with suppress(IdempotencyKeyReused):
        await registration.register(**ALICE | other, key="k")
    assert (hasher.hashed, hasher.verified) == (1, 1)


async def test_failure_does_not_use_up_the_key() -> None:
    registration = service()
    await registration.register(**ALICE)
    with pytest.raises(ValidationFailed):
        await registration.register(**ALICE | {"age": 3}, key="k")
    with pytest.raises(EmailAlreadyRegistered):
        await registration.register(**ALICE, key="k")
    assert not (await registration.register(**ALICE | {"email": "bob@example.com"}, key="k")).replayed


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
    registration = service(users)
    users.winner = registration
    outcome = await registration.register(**ALICE, key="k")

    assert outcome.replayed
    assert [user["id"] for user in (await UserQueryService(users).page(limit=9)).users] == [outcome.user["id"]]


async def test_key_that_disappears_after_it_was_found_is_refused() -> None:
    class ForgetfulUsers(InMemoryUsers):
        async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
            return None

        async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
            raise IdempotencyKeyUsed

    with pytest.raises(IdempotencyKeyReused):
        await service(ForgetfulUsers()).register(**ALICE, key="k")


async def test_repeat_after_a_change_of_the_pepper_is_refused() -> None:
    class OtherHasher(QuickHasher):
        async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
            raise ValueError("another pepper")

    users = InMemoryUsers()
    await service(users).register(**ALICE, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await service(users, OtherHasher()).register(**ALICE, key="k")


async def test_key_can_be_used_again_after_a_day() -> None:
    now = NOW
    registration = UserRegistrationService(InMemoryUsers(), QuickHasher(), clock=lambda: now)
    await registration.register(**ALICE, key="k")
    now += timedelta(hours=24)
    with pytest.raises(EmailAlreadyRegistered):
        await registration.register(**ALICE, key="k")
    assert not (await registration.register(**ALICE | {"email": "bob@example.com"}, key="k")).replayed


async def test_stored_key_reveals_no_secret() -> None:
    users = InMemoryUsers()
    await service(users).register(**ALICE, key="my-secret-key")
    earlier = await users.registered_with(IdempotencyKey.named("my-secret-key"), at=datetime.now(UTC))
    assert earlier is not None
    assert earlier.password_hash not in repr(earlier)
    assert "my-secret-key" not in repr(users.__dict__)
