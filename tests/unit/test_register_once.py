from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.fakes import QuickHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.registration import IdempotencyKeyReused, Outcome, UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.user import Password, PasswordHash, User

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


async def test_a_repeat_is_told_what_came_of_it_and_hashes_nothing_anew() -> None:
    hasher, told = CountingHasher(), []
    users = InMemoryUsers()
    registration = UserRegistrationService(users, hasher, on_registered=lambda: told.append(1))

    first = await registration.register_once(**ALICE, key="k")
    second = await registration.register_once(**ALICE, key="k")

    assert (first.replayed, second) == (False, Outcome(first.user, replayed=True))
    assert (hasher.hashed, hasher.verified, len(told)) == (1, 1, 1)
    assert len(await users.outbox.entries()) == 1


@pytest.mark.parametrize(
    "other",
    [{"email": "bob@example.com"}, {"email": "alice@example.com"}, {"age": 31}, {"password": "another horse battery"}],
)
async def test_another_registration_under_the_key_is_refused(other: dict[str, Any]) -> None:
    registration = service()
    await registration.register_once(**ALICE, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await registration.register_once(**ALICE | other, key="k")


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
    await registration.register_once(**ALICE, key="k")
    assert (hasher.hashed, hasher.verified) == (1, 0)
    with suppress(IdempotencyKeyReused):
        await registration.register_once(**ALICE | other, key="k")
    assert (hasher.hashed, hasher.verified) == (1, 1)


async def test_a_failure_uses_up_no_key() -> None:
    registration = service()
    await registration.register(**ALICE)
    with pytest.raises(ValidationFailed):
        await registration.register_once(**ALICE | {"age": 3}, key="k")
    with pytest.raises(EmailAlreadyRegistered):
        await registration.register_once(**ALICE, key="k")
    assert not (await registration.register_once(**ALICE | {"email": "bob@example.com"}, key="k")).replayed


async def test_who_loses_the_race_is_told_what_the_winner_is() -> None:
    class RacingUsers(InMemoryUsers):
        """Somebody else registers under the key at the last moment."""

        winner: UserRegistrationService | None = None

        async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
            racing, self.winner = self.winner, None
            if racing is not None:
                await racing.register_once(**ALICE, key="k")
            await super().add(user, key=key)

    users = RacingUsers()
    registration = service(users)
    users.winner = registration
    outcome = await registration.register_once(**ALICE, key="k")

    assert outcome.replayed
    assert [user["id"] for user in (await registration.page(limit=9)).users] == [outcome.user["id"]]


async def test_a_key_that_is_gone_as_soon_as_it_was_found_is_refused() -> None:
    class ForgetfulUsers(InMemoryUsers):
        async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
            return None

        async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
            raise IdempotencyKeyUsed

    with pytest.raises(IdempotencyKeyReused):
        await service(ForgetfulUsers()).register_once(**ALICE, key="k")


async def test_when_the_pepper_has_changed_nothing_is_the_same() -> None:
    class OtherHasher(QuickHasher):
        async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
            raise ValueError("another pepper")

    users = InMemoryUsers()
    await service(users).register_once(**ALICE, key="k")
    with pytest.raises(IdempotencyKeyReused):
        await service(users, OtherHasher()).register_once(**ALICE, key="k")


async def test_a_day_later_the_key_is_free() -> None:
    now = NOW
    registration = UserRegistrationService(InMemoryUsers(), QuickHasher(), clock=lambda: now)
    await registration.register_once(**ALICE, key="k")
    now += timedelta(hours=24)
    with pytest.raises(EmailAlreadyRegistered):
        await registration.register_once(**ALICE, key="k")
    assert not (await registration.register_once(**ALICE | {"email": "bob@example.com"}, key="k")).replayed


async def test_what_was_kept_shows_no_secret() -> None:
    users = InMemoryUsers()
    await service(users).register_once(**ALICE, key="my-secret-key")
    earlier = await users.registered_with(IdempotencyKey.named("my-secret-key"), at=datetime.now(UTC))
    assert earlier is not None
    assert earlier.password_hash not in repr(earlier)
    assert "my-secret-key" not in repr(users.__dict__)
