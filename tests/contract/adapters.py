"""The adapters that the contract suites run against: whoever writes another one names it here."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from docs.examples.journal_users import JournalUsers
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import Store

Views = tuple[Store, Store]
"""One and the same store as two processes see it; one that only one process can have, twice."""

Open = Callable[[Path], AbstractAsyncContextManager[Views]]
"""Opens a store without users, which may keep files in this folder, and closes it; one that cannot be opened here skips
the test, and says why.
"""


@asynccontextmanager
async def memory(_: Path) -> AsyncIterator[Views]:
    users = InMemoryUsers()
    yield users, users


@asynccontextmanager
async def sqlite(folder: Path) -> AsyncIterator[Views]:
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(SqliteUsers(folder / "users.db")) for _ in range(2)]
        yield one, other


# --8<-- [start:journal]
@asynccontextmanager
async def journal(folder: Path) -> AsyncIterator[Views]:
    async with JournalUsers(folder / "users.jsonl") as users:
        yield users, users


# --8<-- [end:journal]

ADAPTERS: Mapping[str, Open] = {"memory": memory, "sqlite": sqlite, "journal": journal}
