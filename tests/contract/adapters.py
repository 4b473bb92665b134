"""The adapters that the contract suites run against; add another one here."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from docs.examples.journal_users import JournalUsers
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import Store

Views = tuple[Store, Store]
"""One store as two processes see it; twice the same object if only one process can have the store."""

Open = Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Views]]
"""Opens an empty store and closes it. A fixture that it requests skips the test if it is not available here."""


@asynccontextmanager
async def memory(_: pytest.FixtureRequest) -> AsyncIterator[Views]:
    users = InMemoryUsers()
    yield users, users


@asynccontextmanager
async def sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Views]:
    path = request.getfixturevalue("tmp_path") / "users.db"
    async with SqliteUsers(path) as one, SqliteUsers(path) as other:
        yield one, other


@asynccontextmanager
async def postgres(request: pytest.FixtureRequest) -> AsyncIterator[Views]:
    url = request.getfixturevalue("postgres_url")
    async with PostgresUsers(url) as one, PostgresUsers(url) as other:
        yield one, other


# --8<-- [start:journal]
@asynccontextmanager
async def journal(request: pytest.FixtureRequest) -> AsyncIterator[Views]:
    async with JournalUsers(request.getfixturevalue("tmp_path") / "users.jsonl") as users:
        yield users, users


# --8<-- [end:journal]

ADAPTERS: Mapping[str, Open] = {"memory": memory, "sqlite": sqlite, "postgres": postgres, "journal": journal}
