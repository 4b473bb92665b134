"""Users in the SQLite file: the embedded default."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import UUID

import aiosqlite

from usersvc.adapters.sqlite.archive import SqliteArchive
from usersvc.adapters.sqlite.coalesced_reads import CoalescedReads
from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.adapters.sqlite.outbox import FORGOTTEN_AT_ONCE, SqliteOutbox, insert_events
from usersvc.adapters.sqlite.rows import VIEW, view_of_row
from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserView, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

# SQLite writes the JSON, of a whole page in one step: the thread that reads needs Python's lock once, not for each row.
# A subquery with a limit is read in its own order.
_LINES = """group_concat(
    json_object('id', id, 'email', email, 'age', age, 'registered_at', registered_at), char(10)
)"""


class SqliteUsers:
    """A ``Users`` in a SQLite file; an asynchronous context manager that opens and closes it.

    Reads have a connection of their own, and so never wait for a write. ``outbox`` and ``archive`` are the same file.
    """

    def __init__(self, path: Path) -> None:
        self._file = DatabaseFile(path)
        self._pages = CoalescedReads(self._file.read)
        self.outbox = SqliteOutbox(self._file)
        self.archive = SqliteArchive(self._file)

    async def __aenter__(self) -> Self:
        """Open the file, made if it is missing, and bring its schema up to date.

        Raises:
            StorageUnavailable: the file cannot be opened, is no SQLite database, or is of a newer schema.
        """
        await self._file.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        await self._file.close()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        view = view_of(user)

        async def insert(connection: aiosqlite.Connection) -> None:
            if key is not None:
                await _use(connection, key, user)
            try:
                await connection.execute(
                    f"INSERT INTO users ({VIEW}, mailbox, password_hash) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608  # constants
                    (*view.values(), user.email.mailbox, user.password_hash),
                )
            except sqlite3.IntegrityError as error:
                if "users.mailbox" not in str(error):
                    raise
                raise EmailAlreadyRegistered from None
            await insert_events(connection, user.events)

        await self._file.write(insert)

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        # One statement for all of them: with one for each, the write lock would be held several times as long.
        rows = json.dumps([(*view_of(user).values(), user.email.mailbox, user.password_hash) for user in users])

        async def insert(connection: aiosqlite.Connection) -> list[bool]:
            returned = await connection.execute_fetchall(
                f"""
                INSERT INTO users ({VIEW}, mailbox, password_hash)
                SELECT {", ".join(f"json_extract(value, '$[{column}]')" for column in range(6))}
                FROM json_each(?) WHERE true ORDER BY key
                ON CONFLICT DO NOTHING RETURNING id, mailbox
                """,  # noqa: S608  # constants
                [rows],
            )
            new = set(map(tuple, returned))
            stored = []
            for user in users:
                who = str(user.id), user.email.mailbox
                stored.append(who in new)
                # A second one like the first was refused.
                new.discard(who)
            await insert_events(
                connection,
                [event for user, is_new in zip(users, stored, strict=True) if is_new for event in user.events],
            )
            return stored

        return await self._file.write(insert)

    async def remove(self, user_id: UUID) -> bool:

        async def delete(connection: aiosqlite.Connection) -> bool:
            cursor = await connection.execute("DELETE FROM users WHERE id = ?", [str(user_id)])
            # Both tables are gone through whole, which takes 28 ms with 100,000 entries and 300,000 keys. Indexes
            # for it alone would make each registration two fifths slower to store.
            await connection.execute("DELETE FROM outbox WHERE user_id = ?", [str(user_id)])
            await connection.execute("DELETE FROM idempotency_keys WHERE user_id = ?", [str(user_id)])
            return bool(cursor.rowcount)

        return await self._file.write(delete)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        rows = await self._file.read(
            f"""
            SELECT {VIEW}, password_hash FROM users
            WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = ? AND used_at > ?)
            """,  # noqa: S608  # a constant
            [key.digest, timestamp(at - KEY_LIFETIME)],
        )
        return EarlierRegistration(view_of_row(rows[0]), rows[0][4]) if rows else None

    async def find(self, user_id: UUID) -> UserView | None:
        rows = await self._file.read(f"SELECT {VIEW} FROM users WHERE id = ?", [str(user_id)])  # noqa: S608  # a constant
        return view_of_row(rows[0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        conditions: dict[str, int | str] = {}
        if after is not None:
            conditions["position > ?" if order is Order.ASC else "position < ?"] = after
        if mailbox is not None:
            conditions["mailbox = ?"] = mailbox
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        last = "max" if order is Order.ASC else "min"
        # One more than asked for tells whether there is a next page. All of it is one value: see CoalescedReads.
        found: bytes = await self._pages.value(
            f"""
            SELECT CAST(count(*) || ' ' || ifnull({last}(position), 0) || ' ' || ifnull({_LINES}, '') AS BLOB) FROM (
                SELECT {VIEW}, position FROM users {where} ORDER BY position {order} LIMIT ?
            )
            """,  # noqa: S608  # constants
            [*conditions.values(), limit + 1],
        )
        how_many, furthest, lines = found.split(b" ", 2)
        if int(how_many) <= limit:
            return Page(lines=lines, next_after=None)
        # Behind the place just before the one too many, which nobody has or will have.
        next_after = int(furthest) - 1 if order is Order.ASC else int(furthest) + 1
        return Page(lines=lines.rpartition(b"\n")[0], next_after=next_after)

    async def check(self) -> None:
        """See ``Users.check``: a page is read, and one is written as it was, which needs a disk that is not full."""

        async def write_as_it_was(connection: aiosqlite.Connection) -> None:
            # Asked for, not assumed: a newer program may have upgraded the file meanwhile.
            [[version]] = await connection.execute_fetchall("PRAGMA user_version")
            await connection.execute(f"PRAGMA user_version = {version}")

        await asyncio.gather(self._file.read("SELECT 1 FROM users LIMIT 1"), self._file.write(write_as_it_was))


async def _use(connection: aiosqlite.Connection, key: IdempotencyKey, user: User) -> None:
    """Store a key for a user who is about to be stored, and forget some that have ended."""
    ended = timestamp(user.registered_at - KEY_LIFETIME)
    await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE digest IN (
            SELECT digest FROM idempotency_keys WHERE used_at <= ? ORDER BY used_at LIMIT ?
        )
        """,
        (ended, FORGOTTEN_AT_ONCE),
    )
    # Nor does a key outlive its user.
    await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE digest = ?
        AND (used_at <= ? OR NOT EXISTS (SELECT 1 FROM users WHERE id = user_id))
        """,
        (key.digest, ended),
    )
    cursor = await connection.execute(
        "INSERT INTO idempotency_keys (digest, user_id, used_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (key.digest, str(user.id), timestamp(user.registered_at)),
    )
    if not cursor.rowcount:
        raise IdempotencyKeyUsed
