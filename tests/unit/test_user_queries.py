import json
from typing import Any

import pytest

from tests.fakes import quick_service
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.read_models import Order
from usersvc.application.user_queries import UserQueryService
from usersvc.domain.email_address import EmailAddress


async def test_page_can_be_restricted_to_a_mailbox() -> None:
    users = InMemoryUsers()
    user = (await quick_service(users).register(email="alice@example.com", password="correct horse", age=30)).user
    await quick_service(users).register(email="bob@example.com", password="correct horse", age=30)
    page = await UserQueryService(users).page(limit=9, email=EmailAddress("ALICE@example.com"))
    assert page.users == [user]


async def test_stream_returns_all_users_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.application.keyset.BATCH", 3)
    users = InMemoryUsers()
    service, queries = quick_service(users), UserQueryService(users)
    for n in range(7):
        await service.register(email=f"u{n}@example.com", password="correct horse", age=30)

    async def batches(**asked: Any) -> list[list[str]]:
        found = [batch async for batch in queries.stream(**asked)]
        assert all(batch.endswith(b"\n") for batch in found)
        return [[json.loads(line)["email"][1] for line in batch.splitlines()] for batch in found]

    assert await batches() == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert await batches(order=Order.DESC) == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    assert await batches(limit=4) == [["0", "1", "2"], ["3"]]
    assert await batches(limit=3) == [["0", "1", "2"]]
    assert await batches(after=5) == [["5", "6"]]
    assert await batches(email=EmailAddress("u2@example.com")) == [["2"]]
    assert await batches(email=EmailAddress("nobody@example.com")) == []
