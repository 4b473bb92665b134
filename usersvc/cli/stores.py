"""The store that a command uses."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from usersvc.cli.exit_codes import Failure

if TYPE_CHECKING:
    from asyncio import Runner

    from usersvc.application.ports import Archive, Store
    from usersvc.config import Settings
    from usersvc.setting_parsers import SqliteDatabase

T = TypeVar("T")

MAX_POSITION = 2**63 - 1
"""The highest position and id in a store."""


@asynccontextmanager
async def open_store(settings: "Settings", *, create: bool = False) -> AsyncIterator["Store"]:
    """Open the store of the settings.

    Args:
        settings: as read from the environment.
        create: create a missing database file.

    Raises:
        Failure: it is in the memory of the service, its file is missing, or it is unavailable.
    """
    from usersvc.bootstrap import open_storage
    from usersvc.setting_parsers import MemoryDatabase, SqliteDatabase

    database = settings.database
    if isinstance(database, MemoryDatabase):
        raise Failure("USERSVC_DATABASE_URL is memory://, which only the service itself can access")
    if isinstance(database, SqliteDatabase) and not create:
        _require_file(database)
    with storage_failures():
        async with open_storage(settings) as store:
            yield store


@contextmanager
def storage_failures() -> Iterator[None]:
    """Convert ``StorageUnavailable`` to ``Failure``."""
    from usersvc.application.errors import StorageUnavailable

    try:
        yield
    except StorageUnavailable as error:
        raise Failure(str(error)) from None


async def count_users(archive: "Archive") -> int | None:
    """The number of users; None if counting takes too long."""
    from usersvc.application.errors import StorageUnavailable

    try:
        return await archive.count()
    except StorageUnavailable:
        return None


def run_on_store(work: Callable[["Store"], Awaitable[T]]) -> T:
    """Run a coroutine function on the store of the environment; see ``open_store``."""
    import asyncio

    from usersvc.bootstrap import settings_or_exit

    settings = settings_or_exit()

    async def run() -> T:
        async with open_store(settings) as store:
            return await work(store)

    return asyncio.run(run())


@contextmanager
def enter(loop: "Runner", manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter and leave an asynchronous context manager from outside of its event loop."""

    async def enter() -> T:
        return await manager.__aenter__()

    async def leave() -> None:
        await manager.__aexit__(None, None, None)

    value = loop.run(enter())
    try:
        yield value
    finally:
        loop.run(leave())


def database_file() -> Path:
    """The path of the SQLite database of the environment.

    Raises:
        Failure: the database is another one, or the file is missing.
    """
    from usersvc.bootstrap import settings_or_exit
    from usersvc.setting_parsers import SqliteDatabase

    database = settings_or_exit().database
    if not isinstance(database, SqliteDatabase):
        raise Failure("this command needs a SQLite file, which USERSVC_DATABASE_URL does not name")
    _require_file(database)
    return database.path


def _require_file(database: "SqliteDatabase") -> None:
    if not database.path.exists():
        raise Failure(f"no database at {database}")
