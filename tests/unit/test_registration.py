import asyncio
import logging
from datetime import UTC, datetime

import pytest

from tests.fakes import BrokenNotifier, Mailbag, QuickHasher, quick_service
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.notifications import Notifications
from usersvc.application.ports import Users, view_of
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, RulesBroken
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import EmailAddress, Password, PasswordHash, User

ALICE = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


async def test_a_registered_user_is_listed_found_and_told() -> None:
    mailbag = Mailbag()
    now = datetime(2026, 1, 31, 9, 30, 0, 123, tzinfo=UTC)
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), mailbag, clock=lambda: now)

    user = await service.register(email="alice@example.com", password="correct horse battery", age=30)
    await service.drain()

    assert user["registered_at"] == "2026-01-31T09:30:00.000123Z"
    assert (await service.page(limit=1)).users == [user]
    assert (await service.page(limit=1, email=EmailAddress.parse("ALICE@example.com"))).users == [user]
    assert [str(event.user_id) for event in mailbag.welcomes] == [user["id"]]
    assert mailbag.welcomes[0].email == "alice@example.com"


async def test_nobody_is_told_of_a_refused_registration() -> None:
    mailbag = Mailbag()
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), mailbag)
    await service.register(email="alice@example.com", password="correct horse battery", age=30)

    with pytest.raises(EmailAlreadyRegistered):
        await service.register(email="ALICE@example.com", password="correct horse battery", age=30)
    with pytest.raises(RulesBroken):
        await service.register(email="bob@example.com", password="correct horse battery", age=3)
    await service.drain()

    assert len(mailbag.welcomes) == 1


async def test_a_failing_notifier_fails_no_registration_and_is_logged_without_the_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), BrokenNotifier())

    with caplog.at_level(logging.ERROR):
        user = await service.register(email="alice@example.com", password="correct horse battery", age=30)
        await service.drain()

    assert (await service.page(limit=1)).users == [user]
    assert f"no welcome for user {user['id']}: ConnectionError" in caplog.text
    assert "alice" not in caplog.text


async def test_a_slow_notifier_holds_up_nobody() -> None:
    release = asyncio.Event()

    class SlowNotifier(Mailbag):
        async def welcome(self, event: UserRegistered) -> None:
            await release.wait()
            await super().welcome(event)

    notifier = SlowNotifier()
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), notifier)

    await service.register(email="alice@example.com", password="correct horse battery", age=30)
    assert notifier.welcomes == []
    release.set()
    await service.drain()
    assert len(notifier.welcomes) == 1


async def test_drain_waits_for_what_is_published_meanwhile() -> None:
    told: list[UserRegistered] = []

    class Chain:
        async def welcome(self, event: UserRegistered) -> None:
            if not told:
                notifications.publish(event)
            told.append(event)

    notifications = Notifications(Chain())
    user = User.register(email="a@example.com", password="correct horse battery", age=30).complete(
        PasswordHash("$"), at=datetime.now(UTC)
    )
    notifications.publish(*user.events)
    await notifications.drain()
    assert told == [*user.events, *user.events]


async def test_a_password_is_hashed_only_when_every_rule_holds() -> None:
    hashed: list[Password] = []

    class CountingHasher(QuickHasher):
        async def hash(self, password: Password) -> PasswordHash:
            hashed.append(password)
            return await super().hash(password)

    service = UserRegistrationService(InMemoryUsers(), CountingHasher(), Mailbag())
    with pytest.raises(RulesBroken):
        await service.register(email="nobody", password="correct horse battery", age=30)
    assert hashed == []
    await service.register(email="alice@example.com", password="e\u0301" * 8, age=30)
    assert hashed == [Password("é" * 8)]


async def test_the_minimum_length_can_be_raised() -> None:
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), Mailbag(), password_min_length=15)

    with pytest.raises(RulesBroken, match="password: too-short"):
        await service.register(email="alice@example.com", password="x" * 14, age=30)
    assert [violation.code for violation in service.violations(password="x" * 14)] == ["too-short"]


async def test_the_time_of_registration_is_read_after_the_hash() -> None:
    hour = 8

    class LongHasher(QuickHasher):
        async def hash(self, password: Password) -> PasswordHash:
            nonlocal hour
            hour = 9
            return await super().hash(password)

    service = UserRegistrationService(
        InMemoryUsers(), LongHasher(), Mailbag(), clock=lambda: datetime(2026, 1, 31, hour, tzinfo=UTC)
    )
    user = await service.register(email="alice@example.com", password="correct horse battery", age=30)
    assert user["registered_at"].startswith("2026-01-31T09:")


async def test_the_default_clock_is_in_utc() -> None:
    before = datetime.now(UTC)
    user = await quick_service().register(email="alice@example.com", password="correct horse battery", age=30)
    assert before <= datetime.fromisoformat(user["registered_at"]) <= datetime.now(UTC)


def test_the_fakes_are_what_the_ports_ask_for() -> None:
    users: Users = InMemoryUsers()
    assert users is not None
    assert "password" not in str(view_of.__annotations__)
