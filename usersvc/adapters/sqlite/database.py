"""The SQLite file: how it is opened, read and written."""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from usersvc.adapters.sqlite.schema import integrity_problems, migrate, schema_version
from usersvc.application.errors import StorageUnavailable

T = TypeVar("T")

Identity = tuple[int, int]
"""Device and inode of a file."""

Work = Callable[[aiosqlite.Connection], Coroutine[Any, Any, T]]

BUSY_TIMEOUT = 2.0
"""How long a statement waits for another process's lock, in seconds."""

CALL_TIMEOUT = 4.0
"""The maximum time of any call, in seconds."""

OPENING_TIMEOUT = 10.0
"""How long opening waits for a lock, in seconds: another process may be creating or migrating the file."""

WAL_LIMIT = 16 * 1024 * 1024
"""The size in bytes to which a WAL that grew during a long read is truncated. Usually it has about 4 MB."""

QUICK_CHECK_LIMIT = 64 * 1024 * 1024
"""The maximum size in bytes of a file that is checked for damage when it is opened.

The check takes about 2 ms per megabyte of a cached file, so it would delay the restart with a large one. There, reading
a damaged page raises ``StorageUnavailable``, and ``usersvc db check`` finds the damage.
"""


class DatabaseFile:
    """The open file: a connection for reads and one for writes, so that reads never wait for a write.

    When ``write`` returns, the data is on the disk, in the file at the path. If that file was moved or replaced, writes
    fail until it is back; another file in its place is used only after a restart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: aiosqlite.Connection | None = None
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._identities: list[Identity | None] = []

    async def open(self) -> None:
        """Open the file, create it if it is missing, and migrate its schema.

        Raises:
            StorageUnavailable: it cannot be opened, is not an SQLite database, is damaged, or has a newer schema.
        """
        with storage_errors("cannot open the database"):
            try:
                # Before aiosqlite, whose thread may outlive the event loop when it cannot open a file.
                await asyncio.to_thread(_prepare, self._path)
                prepared = _identity(self._path)
                wal_limit = f"PRAGMA journal_size_limit = {WAL_LIMIT}"
                self._writer = await _connect(self._path, "PRAGMA synchronous = FULL", wal_limit)
                self._reader = await _connect(self._path, "PRAGMA query_only = ON")
                self._identities = self._current_identities()
                if self._identities[0] != prepared:
                    raise StorageUnavailable("the database file was moved while it was opened")
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Wait for running statements and close the file; the last process that closes it removes the WAL."""
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                await reader.close()
        finally:
            async with self._writing:
                writer, self._writer = self._writer, None
                if writer is not None:
                    await writer.close()

    async def read(self, query: str, values: Sequence[int | str] = ()) -> list[Any]:
        """The rows of a query.

        Raises:
            StorageUnavailable: they cannot be read, or not within ``CALL_TIMEOUT``.
        """
        with storage_errors("cannot read"):
            async with asyncio.timeout(CALL_TIMEOUT):
                return await _rows(query, values, _opened(self._reader))

    async def change(self, statement: str, values: Sequence[int | str | None] = ()) -> list[Any]:
        """Run one statement in a transaction of its own and return its rows; see ``write``."""
        return await self.write(partial(_rows, statement, values))

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction that holds the write lock from its beginning, and return its result.

        An exception of ``work`` rolls the transaction back, and so does cancelling the caller before the commit.

        Raises:
            StorageUnavailable: it is unknown whether the transaction was committed.
        """
        is_cancelled = False

        async def transaction() -> T:
            connection = _opened(self._writer)
            self._check_file()
            await connection.execute("BEGIN IMMEDIATE")
            try:
                result = await work(connection)
                if is_cancelled:
                    # The caller has been cancelled or has timed out.
                    raise TimeoutError
                await connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some failures, a full disk among them.
                if connection.in_transaction:
                    await connection.execute("ROLLBACK")
                raise
            # Again: the file may have been moved during the transaction.
            self._check_file()
            return result

        with storage_errors("cannot write"):
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    return await _run_shielded(self._writing, transaction)
            finally:
                is_cancelled = True

    def _check_file(self) -> None:
        """Check that the path still names the file, and that the log with its latest changes is beside it.

        Raises:
            StorageUnavailable: it does not, or it is not.
        """
        if self._current_identities() != self._identities:
            raise StorageUnavailable("the database file, or its -wal or -shm, was moved or replaced")

    def _current_identities(self) -> list[Identity | None]:
        return [_identity(_beside(self._path, suffix)) for suffix in ("", "-wal", "-shm")]


async def _run_shielded(lock: asyncio.Lock, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` while holding the lock, and to its end even if the caller is cancelled.

    A caller that is cancelled while it waits for the lock never starts its work.
    """
    await lock.acquire()
    # No await between here and the done-callback, which releases the lock.
    task = asyncio.create_task(work())

    def ended(_: asyncio.Task[T]) -> None:
        lock.release()
        if not task.cancelled():
            # Mark the exception as retrieved: the caller may have been cancelled.
            task.exception()

    task.add_done_callback(ended)
    # Unlike awaiting the task, this does not cancel it.
    await asyncio.wait([task])
    return task.result()


async def _rows(statement: str, values: Sequence[int | str | None], connection: aiosqlite.Connection) -> list[Any]:
    return list(await connection.execute_fetchall(statement, values))


async def _connect(path: Path, *pragmas: str) -> aiosqlite.Connection:
    # Autocommit: transactions begin only where the code says so. mode=rw: no empty file in place of a missing one.
    connection = await aiosqlite.connect(file_uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        for pragma in pragmas:
            await connection.execute_fetchall(pragma)
        # The first read creates the -wal and the -shm, which stay for as long as a connection is open.
        await connection.execute_fetchall("SELECT 1 FROM sqlite_schema LIMIT 1")
    except BaseException:
        await connection.close()
        raise
    return connection


def _opened(connection: aiosqlite.Connection | None) -> aiosqlite.Connection:
    if connection is None:
        raise StorageUnavailable("the database is closed")
    return connection


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Translate every failure of SQLite into ``StorageUnavailable``."""
    try:
        yield
    except StorageUnavailable as error:
        raise StorageUnavailable(f"{what}: {error}") from None
    except TimeoutError:
        raise StorageUnavailable(f"{what}: no answer in time") from None
    except sqlite3.Error as error:
        raise StorageUnavailable(f"{what}: {error}") from error
    except OSError as error:
        # Without the path, which does not belong into a log.
        raise StorageUnavailable(f"{what}: {error.strerror}") from error


def _identity(path: Path) -> Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def file_uri(path: Path, mode: str) -> str:
    """The URI of a file for ``sqlite3.connect`` (SQLite, "URI Filenames")."""
    return f"{path.absolute().as_uri()}?mode={mode}"


def _prepare(path: Path) -> None:
    """Create the file if it is missing, check it, switch it to WAL and migrate its schema.

    Raises:
        sqlite3.Error: it cannot be opened, or is not a database.
        StorageUnavailable: it is damaged, not writable, or of an unknown schema.
    """
    # In this order: a process that creates the file writes to it before there is a WAL.
    if _size(_beside(path, "-wal")) and not _size(path):
        # SQLite would delete the WAL, and with it the last transactions.
        raise StorageUnavailable("there is a -wal file, but the database that it belongs to is missing or empty")
    if path.exists() and not os.access(path, os.W_OK):
        # SQLite would open it read-only, and stay so even when the file becomes writable.
        raise StorageUnavailable("the file cannot be written to")
    # Only the owner may read addresses and hashes; SQLite gives the -wal and the -shm the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(
        sqlite3.connect(file_uri(path, "rw"), uri=True, timeout=OPENING_TIMEOUT, isolation_level=None)
    ) as connection:
        schema_version(connection)
        if path.stat().st_size <= QUICK_CHECK_LIMIT:
            problems = integrity_problems(connection, "quick_check(1)")
            if problems:
                raise StorageUnavailable(f"the file is damaged: {problems[0]}")
        _use_wal(connection)
        migrate(connection)


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite ignores the busy timeout here in some cases, so processes that start on a new file retry.
    deadline = time.monotonic() + OPENING_TIMEOUT
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise StorageUnavailable("the file system does not support a write-ahead log beside the file")
