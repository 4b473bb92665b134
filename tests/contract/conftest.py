"""Every test of a contract runs once with each adapter."""

from collections.abc import AsyncIterator

import pytest

from tests.contract.adapters import ADAPTERS, Views
from usersvc.application.ports import Outbox, Store


@pytest.fixture(params=ADAPTERS)
async def views(request: pytest.FixtureRequest) -> AsyncIterator[Views]:
    async with ADAPTERS[request.param](request) as views:
        yield views


@pytest.fixture
def users(views: Views) -> Store:
    return views[0]


@pytest.fixture
def outbox(users: Store) -> Outbox:
    return users.outbox
