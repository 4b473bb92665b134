"""The store that a command uses."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, TypeVar

from usersvc.application.ports import Store
from usersvc.cli.output import Failure
from usersvc.config import Settings
from usersvc.setting_parsers import MemoryDatabase, SqliteDatabase

T = TypeVar("T")

MAX_POSITION = 2**63 - 1
"""The highest position and id in a store."""


@asynccontextmanager
async def open_store(settings: Settings, *, create: bool = False) -> AsyncIterator[Store]:
    """Open the store of the settings; ``create`` creates a missing database file.

    Raises:
        Failure: it is in the memory of the service, or its file is missing.
        StorageUnavailable: it cannot be opened.
    """
    from usersvc.bootstrap import open_storage  # slow to import

    database = settings.database
    if isinstance(database, MemoryDatabase):
        raise Failure("USERSVC_DATABASE_URL is memory://, which only the service itself can access")
    if isinstance(database, SqliteDatabase) and not create:
        check_exists(database)
    async with open_storage(settings) as store:
        yield store


def check_exists(database: SqliteDatabase) -> None:
    """Raise ``Failure`` if the file is missing."""
    if not database.path.exists():
        raise Failure(f"no database at {database}")


def run_on_store(work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function on the store of the environment."""
    import asyncio

    async def run() -> T:
        async with open_store(Settings.from_environment()) as store:
            return await work(store)

    return asyncio.run(run())


def on_store(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine function, whose first argument is the store of the environment, the callback of a command."""

    @wraps(command)
    def callback(*args: Any, **kwargs: Any) -> None:
        run_on_store(lambda store: command(store, *args, **kwargs))

    return callback
