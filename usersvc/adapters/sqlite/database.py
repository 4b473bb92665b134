"""The SQLite file: how it is opened, read and written."""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from usersvc.adapters.sqlite.coalesced_reads import CoalescedReads, run_in_thread
from usersvc.adapters.sqlite.schema import migrate, schema_version
from usersvc.application.errors import StorageUnavailable

T = TypeVar("T")

BUSY_TIMEOUT = 2.0
"""How long a statement waits for another process's lock, in seconds."""

CALL_TIMEOUT = 4.0
"""The maximum time of any call, in seconds."""

OPENING_TIMEOUT = 10.0
"""How long opening waits for a lock, in seconds: another process may be creating or migrating the file."""

WAL_LIMIT = 16 * 1024 * 1024
"""The size in bytes to which a WAL that grew during a long read is truncated. Usually it has about 4 MB."""

QUICK_CHECK_LIMIT = 64 * 1024 * 1024
"""The maximum size in bytes of a file that is checked for damage when it is opened: 2 ms per megabyte if cached."""


class DatabaseFile:
    """The open file: a connection for reads and one for writes, so that reads never wait for a write.

    When ``write`` returns, the data is on the disk, in the file at the path. If that file was moved or replaced, writes
    fail until it is back; another file in its place is used only after a restart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def open(self) -> None:
        """Open the file, create it if it is missing, and migrate its schema.

        Raises:
            StorageUnavailable: it cannot be opened, is not an SQLite database, is damaged, or has a newer schema.
        """
        with storage_errors("cannot open the database"):
            await asyncio.to_thread(_create, self._path)
            async with AsyncExitStack() as opened:
                writer = _connection(self._path, OPENING_TIMEOUT, partial(_prepare_writer, path=self._path))
                self._writer = await opened.enter_async_context(writer)
                reader = _connection(self._path, BUSY_TIMEOUT, _prepare_reader)
                self._reads = CoalescedReads(await opened.enter_async_context(reader))
                self._identities = self._current_identities()
                self._opened = opened.pop_all()

    async def close(self) -> None:
        """Close the file, after running statements; the last process that closes it removes the WAL."""
        await self._opened.aclose()

    async def read(self, query: str, values: Sequence[int | str] = ()) -> list[Any]:
        """The rows of a query.

        Raises:
            StorageUnavailable: they cannot be read, or not within ``CALL_TIMEOUT``.
        """
        with storage_errors("cannot read"):
            async with asyncio.timeout(CALL_TIMEOUT):
                return await self._reads.rows(query, values)

    async def change(self, statement: str, values: Sequence[int | str | None] = ()) -> list[Any]:
        """``write`` one statement and return its rows."""
        return await self.write(lambda connection: connection.execute(statement, values).fetchall())

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in a transaction that holds the write lock from its beginning, and return its result.

        It runs in the connection's thread. An exception rolls the transaction back, and so does cancelling the caller
        before the commit.

        Raises:
            StorageUnavailable: it is unknown whether the transaction was committed.
        """
        is_cancelled = False

        def check_caller() -> None:
            if is_cancelled:
                raise TimeoutError

        def transaction(connection: sqlite3.Connection) -> T:
            with connection:
                # Before waiting for the lock, and before the commit.
                check_caller()
                connection.execute("BEGIN IMMEDIATE")
                result = work(connection)
                check_caller()
                # Right before the commit: a file that was moved during the transaction is noticed as well.
                self._check_file()
            return result

        with storage_errors("cannot write"):
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    # Events are stored with the context of the request.
                    run = copy_context().run
                    return await run_in_thread(self._writer, lambda connection: run(transaction, connection))
            finally:
                is_cancelled = True

    def _check_file(self) -> None:
        """Check that the path still names the file, and that the WAL with its latest changes is beside it."""
        with suppress(OSError):
            if self._current_identities() == self._identities:
                return
        raise StorageUnavailable("the database file, or its -wal or -shm, was moved or replaced")

    def _current_identities(self) -> list[tuple[int, int]]:
        """Device and inode of the database, its WAL and its shared memory."""
        files = [Path(f"{self._path}{suffix}").stat() for suffix in ("", "-wal", "-shm")]
        return [(file.st_dev, file.st_ino) for file in files]


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate every failure of SQLite into ``StorageUnavailable``."""
    try:
        yield
    except StorageUnavailable as error:
        raise StorageUnavailable(f"{what}: {error}") from None
    except TimeoutError:
        raise StorageUnavailable(f"{what}: timed out") from None
    except sqlite3.Error as error:
        raise StorageUnavailable(f"{what}: {error}") from error
    except OSError as error:
        # Without the path, which does not belong into a log.
        raise StorageUnavailable(f"{what}: {error.strerror}") from error


def file_uri(path: Path) -> str:
    """The URI of an existing file: SQLite never creates an empty one in place of a missing one ("URI Filenames")."""
    return f"{path.absolute().as_uri()}?mode=rw"


@asynccontextmanager
async def _connection(
    path: Path, busy_timeout: float, prepare: Callable[[sqlite3.Connection], None]
) -> AsyncIterator[aiosqlite.Connection]:
    # Transactions begin only where the code says so.
    connection = await aiosqlite.connect(file_uri(path), uri=True, timeout=busy_timeout, isolation_level=None)
    try:
        await run_in_thread(connection, prepare)
        yield connection
    finally:
        # Unlike `close`, which would wait for as long as a statement hangs. It closes the connection afterwards.
        if stopped := connection.stop():
            await asyncio.wait([stopped], timeout=CALL_TIMEOUT)


def _create(path: Path) -> None:
    """Create the file if it is missing."""
    # In this order: a process that creates the file writes to it before there is a WAL.
    if _size(Path(f"{path}-wal")) and not _size(path):
        # SQLite would delete the WAL, and with it the last transactions.
        raise StorageUnavailable("there is a -wal file, but the database that it belongs to is missing or empty")
    if path.exists() and not os.access(path, os.W_OK):
        # SQLite would open it read-only, and stay so even when the file becomes writable.
        raise StorageUnavailable("the file cannot be written to")
    # Only the owner may read addresses and hashes; SQLite gives the -wal and the -shm the same mode.
    path.touch(mode=0o600)


def _prepare_writer(connection: sqlite3.Connection, path: Path) -> None:
    """Check the file, switch it to WAL and migrate its schema."""
    schema_version(connection)
    if _size(path) <= QUICK_CHECK_LIMIT and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise StorageUnavailable("the file is damaged; `usersvc db check` lists the damage")
    connection.execute("PRAGMA synchronous = FULL")
    _use_wal(connection)
    migrate(connection)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000:.0f}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")


def _prepare_reader(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only = ON")
    # The first read opens the -wal and the -shm, which stay for as long as a connection is open.
    schema_version(connection)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite ignores the busy timeout here in some cases, so processes that start on a new file retry.
    deadline = time.monotonic() + OPENING_TIMEOUT
    while True:
        try:
            if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise StorageUnavailable("the file system does not support a write-ahead log beside the file")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
