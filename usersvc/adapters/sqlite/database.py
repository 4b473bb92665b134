"""The SQLite file: its schema versions, who may use it when, how it is opened, copied and checked."""

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

from usersvc.application.errors import StorageUnavailable

T = TypeVar("T")

Identity = tuple[int, int]
"""Device and inode of a file."""
Work = Callable[[aiosqlite.Connection], Coroutine[Any, Any, T]]

BUSY_TIMEOUT = 2.0
"""How long a statement waits for another process's lock, in seconds."""
CALL_TIMEOUT = 4.0
"""How long any call waits for the store in all, in seconds, before it says that the store is not available."""
OPENING_TIMEOUT = 10.0
"""How long opening waits for a lock, in seconds: other processes may be making the file, or upgrading it."""

WAL_LIMIT = 16 * 1024 * 1024
"""What a WAL that a long read has let grow is cut back to, in bytes. It has about 4 MB when nobody reads for long."""
LOOKED_THROUGH = 64 * 1024 * 1024
"""Up to which size a file is looked through for damage when it is opened, in bytes.

That takes some 2 ms a megabyte when the file is in memory, more when it is not: a restart would keep the users of a
large file waiting. There, damage is found by whoever meets the page (it is told as not available, never shown as
data), and by ``usersvc db check``.
"""

APPLICATION_ID = 0x75737663
"""Marks a SQLite file as one of this service ("usvc"); pre-release versions, whose schemas differ, did not set it."""

MIGRATIONS = (
    # AUTOINCREMENT: a position is never given out again, even when its user is gone.
    # outbox.due_at is null for an entry that is dead-lettered, and the end of the lease for one that is leased.
    # outbox_unlimited has all entries but those that the limits on mails put off: see SqliteOutbox.lease.
    # mail_limits: see usersvc.domain.mail_limits. A row has no effect from its second time on.
    # idempotency_keys.digest is that of the key alone.
    """
    CREATE TABLE users (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        mailbox TEXT NOT NULL UNIQUE,
        email TEXT NOT NULL,
        age INTEGER NOT NULL,
        password_hash TEXT NOT NULL,
        registered_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user_id TEXT NOT NULL,
        email TEXT NOT NULL,
        occurred_at TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due_at TEXT,
        reason TEXT,
        lease TEXT,
        request_id TEXT,
        trace_id TEXT,
        span_id TEXT
    ) STRICT;
    CREATE INDEX outbox_due_at ON outbox (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX outbox_unlimited ON outbox (due_at) WHERE attempts > 0 OR reason IS NULL;
    CREATE TABLE mail_limits (
        digest TEXT PRIMARY KEY,
        since TEXT NOT NULL,
        until TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX mail_limits_until ON mail_limits (until);
    CREATE TABLE idempotency_keys (
        digest TEXT PRIMARY KEY,
        user_id TEXT NOT NULL,
        used_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_keys_used_at ON idempotency_keys (used_at);
    """,
)
"""The statements that lead from each schema version (``PRAGMA user_version``) to the next; see ``docs/upgrade.md``."""


class DatabaseFile:
    """The open file: a connection for reads and one for writes, so that reads never wait for a write.

    What ``write`` has returned for is on the disk, in the file at the path. When that file was moved or replaced,
    writes fail until it is back; another file in its place is used only after a restart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: aiosqlite.Connection | None = None
        self._writer: aiosqlite.Connection | None = None
        self._writing = asyncio.Lock()
        self._identities: list[Identity | None] = []

    async def open(self) -> None:
        """Open it, made if it is missing, with its schema brought up to date.

        Raises:
            StorageUnavailable: it cannot be opened, is no SQLite database, is damaged, or is of a newer schema.
        """
        with _storage_errors("cannot open the database"):
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
        """Let what is in hand finish, and close it; the last process to do so leaves one file, without a WAL."""
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
        """The rows that a query gives.

        Raises:
            StorageUnavailable: they cannot be read, or not within ``CALL_TIMEOUT``.
        """
        with _storage_errors("cannot read"):
            async with asyncio.timeout(CALL_TIMEOUT):
                return await _rows(query, values, _opened(self._reader))

    async def change(self, statement: str, values: Sequence[int | str | None] = ()) -> list[Any]:
        """Run one statement in a transaction of its own; give the rows that it returns. See ``write``."""
        return await self.write(partial(_rows, statement, values))

    async def write(self, work: Work[T]) -> T:
        """Do some work in a transaction that has the only write lock from its beginning; give what the work gives.

        Whatever the work raises undoes all of it, and so does giving up waiting, unless it is being stored just then.

        Raises:
            StorageUnavailable: it is not known whether the work was stored.
        """
        wanted = True

        async def transaction() -> T:
            connection = _opened(self._writer)
            self._check_file()
            await connection.execute("BEGIN IMMEDIATE")
            try:
                result = await work(connection)
                if not wanted:
                    # Whoever asked has been told that it failed, or has gone.
                    raise TimeoutError
                await connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some failures, a full disk among them.
                if connection.in_transaction:
                    await connection.execute("ROLLBACK")
                raise
            # Again: it may have been moved meanwhile.
            self._check_file()
            return result

        with _storage_errors("cannot write"):
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    return await _to_its_end(self._writing, transaction)
            finally:
                wanted = False

    def _check_file(self) -> None:
        """Check that the path still names the file, and that the log with its latest changes is beside it.

        Raises:
            StorageUnavailable: it does not, or it is not.
        """
        if self._current_identities() != self._identities:
            raise StorageUnavailable("the database file, or its -wal or -shm, was moved or replaced")

    def _current_identities(self) -> list[Identity | None]:
        return [_identity(_beside(self._path, suffix)) for suffix in ("", "-wal", "-shm")]


async def _to_its_end(turn: asyncio.Lock, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Do some work when its turn comes, and once it has begun to its end, even if its caller goes.

    So who comes next finds nothing half done, and nothing is begun for somebody who has stopped waiting.
    """
    await turn.acquire()
    # From here on nothing waits until the task has the turn, and gives it back.
    task = asyncio.create_task(work())

    def ended(_: asyncio.Task[T]) -> None:
        turn.release()
        if not task.cancelled():
            # The caller may have gone, and asyncio complains of an error that nobody has looked at.
            task.exception()

    task.add_done_callback(ended)
    # Unlike awaiting the task, this does not cancel it.
    await asyncio.wait([task])
    return task.result()


async def _rows(statement: str, values: Sequence[int | str | None], connection: aiosqlite.Connection) -> list[Any]:
    return list(await connection.execute_fetchall(statement, values))


async def _connect(path: Path, *pragmas: str) -> aiosqlite.Connection:
    # Autocommit: transactions begin only where the code says so. mode=rw: no empty file in place of a missing one.
    connection = await aiosqlite.connect(_uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
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
def _storage_errors(what: str) -> Iterator[None]:
    """Any failure of SQLite, in the language of the port."""
    try:
        yield
    except StorageUnavailable as error:
        raise StorageUnavailable(f"{what}: {error}") from None
    except TimeoutError:
        raise StorageUnavailable(f"{what}: no answer in time") from None
    except sqlite3.Error as error:
        raise StorageUnavailable(f"{what}: {error}") from error
    except OSError as error:
        # Without the path, which is for nobody's log.
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


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


def _prepare(path: Path) -> None:
    """Check the file, made if it is missing, switch it to WAL for good, and bring its schema up to date.

    Raises:
        sqlite3.Error: it cannot be opened, or is no database.
        StorageUnavailable: it is not fit.
    """
    # In this order: another process that makes the file has something in it before there is a WAL.
    if _size(_beside(path, "-wal")) and not _size(path):
        # SQLite would throw the WAL away, and with it what was stored last.
        raise StorageUnavailable("there is a -wal file, but the database that it belongs to is missing or empty")
    if path.exists() and not os.access(path, os.W_OK):
        # SQLite would open it for reading, and would go on so when it can be written to again.
        raise StorageUnavailable("the file cannot be written to")
    # It holds addresses and hashes, so nobody else may read it; SQLite gives its companions the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    with closing(
        sqlite3.connect(_uri(path, "rw"), uri=True, timeout=OPENING_TIMEOUT, isolation_level=None)
    ) as connection:
        version = _schema_version(connection)
        if path.stat().st_size <= LOOKED_THROUGH:
            found = _findings(connection, "quick_check(1)")
            if found:
                raise StorageUnavailable(f"the file is damaged: {found[0]}")
        _use_wal(connection)
        if version < len(MIGRATIONS):
            _migrate(connection)


def _schema_version(connection: sqlite3.Connection) -> int:
    """The schema version of the file; 0 if the file is empty.

    Raises:
        StorageUnavailable: the schema is of a newer version, of a pre-release version, or of another program.
    """
    # One statement reads one snapshot: another process may be creating the tables.
    version: int
    version, application_id, is_empty = connection.execute(
        """
        SELECT user_version, application_id, NOT EXISTS (SELECT 1 FROM sqlite_schema)
        FROM pragma_user_version, pragma_application_id
        """
    ).fetchone()
    if application_id != APPLICATION_ID and not (is_empty and version == application_id == 0):
        raise StorageUnavailable(
            "the file is of a pre-release usersvc or of another program; export the users with the version that made "
            "it, and import them into a new file: docs/moving.md"
        )
    if version > len(MIGRATIONS):
        raise StorageUnavailable(
            f"the database has schema {version}, made by a newer usersvc; this one knows up to {len(MIGRATIONS)}"
        )
    return version


def _findings(connection: sqlite3.Connection, check: str) -> list[str]:
    found = []
    try:
        for [finding] in connection.execute(f"PRAGMA {check}"):
            # SQLite puts several into one row, on several lines.
            found += [] if finding == "ok" else [" ".join(finding.split())]
    except sqlite3.DatabaseError as error:
        # Some damage ends the check.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
            raise
        found.append(str(error))
    return found


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite does not always wait for locks here, so the processes that start on a new file at once take turns.
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
        raise StorageUnavailable("a write-ahead log cannot be kept beside the file")


def _migrate(connection: sqlite3.Connection) -> None:
    """Run the missing migrations in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again: another process may have been quicker.
        for migration in MIGRATIONS[_schema_version(connection) :]:
            for statement in filter(str.strip, migration.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def backup(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, while others go on writing to it.

    Args:
        source: the database.
        target: an empty file.

    Raises:
        StorageUnavailable: one of the two cannot be read or written.
    """
    with (
        _storage_errors(f"cannot copy {source}"),
        closing(sqlite3.connect(_uri(source, "rw"), uri=True, timeout=BUSY_TIMEOUT)) as original,
        closing(sqlite3.connect(_uri(target, "rw"), uri=True)) as copy,
    ):
        original.backup(copy)
        # One file, that needs no other beside it.
        copy.execute("PRAGMA journal_mode = DELETE")


def damage(path: Path) -> list[str]:
    """What is wrong with a database; empty when nothing is.

    Raises:
        StorageUnavailable: it cannot be read at all, or is of a newer schema.
    """
    with (
        _storage_errors(f"cannot read {path}"),
        closing(sqlite3.connect(_uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT)) as connection,
    ):
        version = _schema_version(connection)
        found = _findings(connection, "integrity_check")
        if version < len(MIGRATIONS):
            found.append(f"its schema is {version}; the next start brings it to {len(MIGRATIONS)}")
        else:
            found += [f"{kind} {name} is missing or changed" for kind, name, _ in _schema() - _schema(connection)]
    return found


def _schema(connection: sqlite3.Connection | None = None) -> set[tuple[str, str, str]]:
    """What a database consists of: kind, name and statement; by default what one of this version has."""
    if connection is None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
            _migrate(fresh)
            return _schema(fresh)
    return set(connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
