"""Users in one SQLite file: the embedded default."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import aiosqlite

from usersvc.application.ports import Order, Page, StorageUnavailable, UserView, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

BUSY_TIMEOUT = 5.0
"""How long to wait for another process's write lock, in seconds."""

MIGRATIONS = (
    # AUTOINCREMENT: a position is never given out again, even when its user is gone.
    """
    CREATE TABLE users (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        mailbox TEXT NOT NULL UNIQUE,
        email TEXT NOT NULL,
        age INTEGER NOT NULL,
        password_hash TEXT NOT NULL,
        registered_at TEXT NOT NULL
    ) STRICT
    """,
)
"""What leads from each schema version (``PRAGMA user_version``) to the next."""

_VIEW = "id, email, age, registered_at"


class SqliteUsers:
    """A ``Users`` in a SQLite file; an asynchronous context manager that opens and closes it.

    What ``add`` has acknowledged is on the disk (WAL with ``synchronous=FULL``). Reads have a connection of their
    own, and so never wait for a write.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: aiosqlite.Connection
        self._reader: aiosqlite.Connection
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Open the file, made if it is missing, and bring its schema up to date.

        Raises:
            StorageUnavailable: the file cannot be opened, is no SQLite database, or is of a newer schema.
        """
        async with AsyncExitStack() as stack:
            with _told_as_unavailable(f"cannot open {self._path}"):
                # First without aiosqlite, whose thread may outlive the event loop when it cannot open a file.
                await asyncio.to_thread(_prepare, self._path)
                self._writer = await stack.enter_async_context(_connection(self._path))
                await self._writer.execute("PRAGMA synchronous = FULL")
                self._reader = await stack.enter_async_context(_connection(self._path))
                await self._reader.execute("PRAGMA query_only = ON")
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        await self._open.aclose()

    async def add(self, user: User) -> None:
        """See ``Users.add``."""
        view = view_of(user)
        with _told_as_unavailable("cannot store a user"):
            try:
                # One statement in autocommit mode is one transaction.
                await self._writer.execute(
                    f"INSERT INTO users ({_VIEW}, mailbox, password_hash) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608  # constants
                    (*view.values(), user.email.mailbox, user.password_hash),
                )
            except sqlite3.IntegrityError as error:
                if "users.mailbox" not in str(error):
                    raise
                raise EmailAlreadyRegistered from None

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        rows = await self._read(f"SELECT {_VIEW} FROM users WHERE id = ?", [str(user_id)])  # noqa: S608  # a constant
        return _view(rows[0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        conditions: dict[str, int | str] = {}
        if after is not None:
            conditions["position > ?" if order is Order.ASC else "position < ?"] = after
        if mailbox is not None:
            conditions["mailbox = ?"] = mailbox
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        # One more than asked for tells whether there is a next page.
        rows = await self._read(
            f"SELECT {_VIEW}, position FROM users {where} ORDER BY position {order} LIMIT ?",  # noqa: S608  # constants
            [*conditions.values(), limit + 1],
        )
        shown = rows[:limit]
        return Page(users=[_view(row) for row in shown], next_after=shown[-1][4] if len(rows) > limit else None)

    async def check(self) -> None:
        """See ``Users.check``."""
        await self._read("SELECT 1 FROM users LIMIT 1", [])

    async def _read(self, query: str, values: list[int | str]) -> list[Any]:
        with _told_as_unavailable("cannot read users"):
            return list(await self._reader.execute_fetchall(query, values))


def _view(row: tuple[Any, ...]) -> UserView:
    return {"id": row[0], "email": row[1], "age": row[2], "registered_at": row[3]}


@contextmanager
def _told_as_unavailable(what: str) -> Iterator[None]:
    """Any failure of SQLite, in the language of the port."""
    try:
        yield
    except sqlite3.Error as error:
        raise StorageUnavailable(f"{what}: {error}") from error


@asynccontextmanager
async def _connection(path: Path) -> AsyncIterator[aiosqlite.Connection]:
    # Autocommit: a transaction begins where the code says so, and nowhere else.
    connection = await aiosqlite.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        yield connection
    finally:
        await connection.close()


def _prepare(path: Path) -> None:
    """Make the file if it is missing, switch it to WAL for good, and bring its schema up to date."""
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)) as connection:
        _use_wal(connection)
        _migrate(connection)


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite does not always wait for locks here, so the processes that start on a new file at once take turns.
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _migrate(connection: sqlite3.Connection) -> None:
    """Run the missing migrations in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StorageUnavailable(
                f"the database has schema {version}, made by a newer usersvc; this one knows up to {len(MIGRATIONS)}"
            )
        for migration in MIGRATIONS[version:]:
            connection.execute(migration)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
