"""The store that a command works on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from usersvc.cli.exit_codes import Failure

if TYPE_CHECKING:
    from asyncio import Runner

    from usersvc.application.ports import Archive, Store
    from usersvc.config import Settings, SqliteDatabase

T = TypeVar("T")

HIGHEST_PLACE = 2**63 - 1
"""What stores count to."""


@asynccontextmanager
async def opened(settings: "Settings", *, create: bool = False) -> AsyncIterator["Store"]:
    """The store that the settings name, while this is entered.

    Args:
        settings: as read from the environment.
        create: make a database file that is missing.

    Raises:
        Failure: it is in the memory of another process, or a file that is missing, or it does not answer.
    """
    from usersvc.bootstrap import opened_store
    from usersvc.config import MemoryDatabase, SqliteDatabase

    database = settings.database
    if isinstance(database, MemoryDatabase):
        raise Failure("USERSVC_DATABASE_URL is memory://, which no other process than the service can look into")
    if isinstance(database, SqliteDatabase) and not create:
        _expect(database)
    with storage_failures():
        async with opened_store(settings) as store:
            yield store


@contextmanager
def storage_failures() -> Iterator[None]:
    """Tell what a store says of its state as the failure of the command."""
    from usersvc.application.errors import StorageUnavailable

    try:
        yield
    except StorageUnavailable as error:
        raise Failure(str(error)) from None


async def total(archive: "Archive") -> int | None:
    """Count the users; None if that takes too long."""
    from usersvc.application.errors import StorageUnavailable

    try:
        return await archive.count()
    except StorageUnavailable:
        return None


def on_store(work: Callable[["Store"], Awaitable[T]]) -> T:
    """Do some work on the store that the environment names; see ``opened``."""
    import asyncio

    from usersvc.bootstrap import settings_or_exit

    settings = settings_or_exit()

    async def run() -> T:
        async with opened(settings) as store:
            return await work(store)

    return asyncio.run(run())


@contextmanager
def entered(loop: "Runner", manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter and leave an asynchronous context manager from outside of the loop that it lives in."""

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
    """The database file that the environment names.

    Raises:
        Failure: it names none, or one that is missing.
    """
    from usersvc.bootstrap import settings_or_exit
    from usersvc.config import SqliteDatabase

    database = settings_or_exit().database
    if not isinstance(database, SqliteDatabase):
        raise Failure("USERSVC_DATABASE_URL names no file, and this command works on one")
    _expect(database)
    return database.path


def _expect(database: "SqliteDatabase") -> None:
    if not database.path.exists():
        raise Failure(f"there is no database at {database}")
