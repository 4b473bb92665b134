import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.fakes import QuickHasher, quick_service
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.ports import Users
from usersvc.application.read_models import Order, UserView
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.user import EmailAddress, Password, PasswordHash

ALICE = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


async def test_a_registered_user_is_listed_and_is_to_be_told() -> None:
    users = InMemoryUsers()
    now = datetime(2026, 1, 31, 9, 30, 0, 123, tzinfo=UTC)
    woken: list[int] = []

    service = UserRegistrationService(
        users, QuickHasher(), clock=lambda: now, on_registered=lambda: woken.append(len(users.outbox._entries))
    )
    user = await service.register(email="alice@example.com", password="correct horse battery", age=30)

    assert user["registered_at"] == "2026-01-31T09:30:00.000123Z"
    assert (await service.page(limit=1)).users == [user]
    assert (await service.page(limit=1, email=EmailAddress("ALICE@example.com"))).users == [user]
    [entry] = await users.outbox.entries()
    assert (str(entry.event.user_id), entry.event.email) == (user["id"], "alice@example.com")
    # Only when there is something to find.
    assert woken == [1]


async def test_nobody_is_told_of_a_refused_registration() -> None:
    users = InMemoryUsers()
    service = UserRegistrationService(users, QuickHasher())
    await service.register(email="alice@example.com", password="correct horse battery", age=30)

    with pytest.raises(EmailAlreadyRegistered):
        await service.register(email="ALICE@example.com", password="correct horse battery", age=30)
    with pytest.raises(ValidationFailed):
        await service.register(email="bob@example.com", password="correct horse battery", age=3)

    assert len(await users.outbox.entries()) == 1


async def test_a_password_is_hashed_only_when_every_rule_holds() -> None:
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


async def test_the_minimum_length_can_be_raised() -> None:
    service = UserRegistrationService(InMemoryUsers(), QuickHasher(), password_min_length=15)

    with pytest.raises(ValidationFailed, match="password: too-short"):
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
        InMemoryUsers(), LongHasher(), clock=lambda: datetime(2026, 1, 31, hour, tzinfo=UTC)
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
    assert not any("password" in name for name in UserView.__annotations__)


async def test_everybody_comes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.application.keyset.BATCH", 3)
    service = quick_service()
    users = [await service.register(email=f"u{n}@example.com", password="correct horse", age=30) for n in range(7)]

    async def batches(**asked: Any) -> list[list[str]]:
        found = [batch async for batch in service.batches(**asked)]
        assert all(batch.endswith(b"\n") for batch in found)
        return [[json.loads(line)["email"][1] for line in batch.splitlines()] for batch in found]

    assert await batches() == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert await batches(order=Order.DESC) == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    assert await batches(limit=4) == [["0", "1", "2"], ["3"]]
    assert await batches(limit=3) == [["0", "1", "2"]]
    assert await batches(after=5) == [["5", "6"]]
    assert await batches(email=EmailAddress(users[2]["email"])) == [["2"]]
    assert await batches(email=EmailAddress("nobody@example.com")) == []


async def test_who_comes_or_reads_meanwhile_makes_nobody_come_twice_or_be_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("usersvc.application.keyset.BATCH", 2)
    service = quick_service()
    for number in range(4):
        await service.register(email=f"u{number}@example.com", password="correct horse", age=30)
    seen = []
    async for batch in service.batches():
        seen += [json.loads(line)["email"][1] for line in batch.splitlines()]
        if len(seen) == 2:
            await service.register(email="u4@example.com", password="correct horse", age=30)
    assert seen == ["0", "1", "2", "3", "4"]
