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
from usersvc.adapters.sqlite.outbox import EXPIRED_BATCH, SqliteOutbox, insert_events
from usersvc.adapters.sqlite.rows import VIEW, view_of_row
from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserView, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

# SQLite writes the JSON of a whole page, so the reading thread needs Python's lock once and not for each row. The rows
# keep the order of the limited subquery.
_LINES = """group_concat(
    json_object('id', id, 'email', email, 'age', age, 'registered_at', registered_at), char(10)
)"""


class SqliteUsers:
    """A ``Users`` in an SQLite file; an asynchronous context manager that opens and closes it.

    ``outbox`` and ``archive`` use the same file.
    """

    def __init__(self, path: Path) -> None:
        self._file = DatabaseFile(path)
        self._pages = CoalescedReads(self._file.read)
        self.outbox = SqliteOutbox(self._file)
        self.archive = SqliteArchive(self._file)

    async def __aenter__(self) -> Self:
        """Open the file, create it if it is missing, and migrate its schema.

        Raises:
            StorageUnavailable: the file cannot be opened, is not an SQLite database, or has a newer schema.
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
                await _use_key(connection, key, user)
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
        # One statement for all users: with one for each, the write lock would be held several times as long.
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
                pair = str(user.id), user.email.mailbox
                stored.append(pair in new)
                # A repeated pair was not stored again.
                new.discard(pair)
            await insert_events(
                connection,
                [event for user, is_new in zip(users, stored, strict=True) if is_new for event in user.events],
            )
            return stored

        return await self._file.write(insert)

    async def remove(self, user_id: UUID) -> bool:

        async def delete(connection: aiosqlite.Connection) -> bool:
            cursor = await connection.execute("DELETE FROM users WHERE id = ?", [str(user_id)])
            # Both tables are scanned: 28 ms for 100,000 entries and 300,000 keys. Indexes on user_id would make each
            # registration two fifths slower to store.
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
        # One row more than requested shows whether there is a next page. One value, as CoalescedReads needs.
        found: bytes = await self._pages.value(
            f"""
            SELECT CAST(count(*) || ' ' || ifnull({last}(position), 0) || ' ' || ifnull({_LINES}, '') AS BLOB) FROM (
                SELECT {VIEW}, position FROM users {where} ORDER BY position {order} LIMIT ?
            )
            """,  # noqa: S608  # constants
            [*conditions.values(), limit + 1],
        )
        count, last_position, lines = found.split(b" ", 2)
        if int(count) <= limit:
            return Page(lines=lines, next_after=None)
        # The next page begins with the extra row, so right after the position before it.
        next_after = int(last_position) - 1 if order is Order.ASC else int(last_position) + 1
        return Page(lines=lines.rpartition(b"\n")[0], next_after=next_after)

    async def check(self) -> None:
        """Read a page and rewrite one unchanged, which fails if the disk is full."""

        async def rewrite_version(connection: aiosqlite.Connection) -> None:
            # Read first: a newer release may have migrated the file meanwhile.
            [[version]] = await connection.execute_fetchall("PRAGMA user_version")
            await connection.execute(f"PRAGMA user_version = {version}")

        await asyncio.gather(self._file.read("SELECT 1 FROM users LIMIT 1"), self._file.write(rewrite_version))


async def _use_key(connection: aiosqlite.Connection, key: IdempotencyKey, user: User) -> None:
    """Store the key of a user who is about to be stored, and delete some expired keys."""
    expired = timestamp(user.registered_at - KEY_LIFETIME)
    await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE digest IN (
            SELECT digest FROM idempotency_keys WHERE used_at <= ? ORDER BY used_at LIMIT ?
        )
        """,
        (expired, EXPIRED_BATCH),
    )
    # A key whose user was removed may be used again.
    await connection.execute(
        """
        DELETE FROM idempotency_keys WHERE digest = ?
        AND (used_at <= ? OR NOT EXISTS (SELECT 1 FROM users WHERE id = user_id))
        """,
        (key.digest, expired),
    )
    cursor = await connection.execute(
        "INSERT INTO idempotency_keys (digest, user_id, used_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (key.digest, str(user.id), timestamp(user.registered_at)),
    )
    if not cursor.rowcount:
        raise IdempotencyKeyUsed
