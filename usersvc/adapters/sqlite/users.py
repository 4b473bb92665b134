"""Users in the SQLite file: the embedded default."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Self
from uuid import UUID

from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.adapters.sqlite.outbox import SqliteOutbox, delete_expired, insert_events
from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserRecord, UserView, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

_VIEW = "id, email, age, registered_at"

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
        self.outbox = SqliteOutbox(self._file)
        self.archive = SqliteArchive(self._file)

    async def __aenter__(self) -> Self:
        """Open the file; see ``DatabaseFile.open``."""
        await self._file.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the file."""
        await self._file.close()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        def add(connection: sqlite3.Connection) -> None:
            if key is not None:
                _use_key(connection, key, user)
            if not _insert(connection, user, conflict="(mailbox)"):
                raise EmailAlreadyRegistered

        await self._file.write(add)

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        return await self._file.write(lambda connection: [_insert(connection, user) for user in users])

    async def remove(self, user_id: UUID) -> bool:
        def delete(connection: sqlite3.Connection) -> bool:
            cursor = connection.execute("DELETE FROM users WHERE id = ?", [str(user_id)])
            # Both tables are scanned: 28 ms for 100,000 entries and 300,000 keys. Indexes on user_id would make each
            # registration two fifths slower to store.
            connection.execute("DELETE FROM outbox WHERE user_id = ?", [str(user_id)])
            connection.execute("DELETE FROM idempotency_keys WHERE user_id = ?", [str(user_id)])
            return bool(cursor.rowcount)

        return await self._file.write(delete)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        condition = "WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = ? AND used_at > ?)"
        records = await _records(self._file, condition, key.digest, timestamp(at - KEY_LIFETIME))
        return EarlierRegistration(records[0].view, records[0].password_hash) if records else None

    async def find(self, user_id: UUID) -> UserView | None:
        records = await _records(self._file, "WHERE id = ?", str(user_id))
        return records[0].view if records else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        conditions: dict[str, int | str] = {}
        if after is not None:
            conditions["position > ?" if order is Order.ASC else "position < ?"] = after
        if mailbox is not None:
            conditions["mailbox = ?"] = mailbox
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        last = "max" if order is Order.ASC else "min"
        # One row more than requested shows whether there is a next page.
        [(count, last_position, lines)] = await self._file.read(
            f"""
            SELECT count(*), {last}(position), CAST(ifnull({_LINES}, '') AS BLOB) FROM (
                SELECT {_VIEW}, position FROM users {where} ORDER BY position {order} LIMIT ?
            )
            """,  # noqa: S608  # constants
            [*conditions.values(), limit + 1],
        )
        if count <= limit:
            return Page(lines=lines, next_after=None)
        # The next page begins with the extra row, so right after the position before it.
        next_after = last_position - 1 if order is Order.ASC else last_position + 1
        return Page(lines=lines.rpartition(b"\n")[0], next_after=next_after)

    async def check(self) -> None:
        """Read a page and rewrite one unchanged, which fails if the disk is full."""

        def rewrite_version(connection: sqlite3.Connection) -> None:
            # Read first: a newer release may have migrated the file meanwhile.
            [[version]] = connection.execute("PRAGMA user_version")
            connection.execute(f"PRAGMA user_version = {version}")

        await asyncio.gather(self._file.read("SELECT 1 FROM users LIMIT 1"), self._file.write(rewrite_version))


class SqliteArchive:
    """An ``Archive`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        return await _records(self._file, "WHERE position > ? ORDER BY position LIMIT ?", after or 0, limit)

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        condition = """
            WHERE mailbox IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))
            ORDER BY position
        """
        return await _records(self._file, condition, json.dumps([*mailboxes]), json.dumps([*map(str, ids)]))


def _insert(connection: sqlite3.Connection, user: User, *, conflict: str = "") -> bool:
    """Store a user with the events, and return True; return False on a ``conflict`` (by default, any)."""
    cursor = connection.execute(
        f"""
        INSERT INTO users ({_VIEW}, mailbox, password_hash) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT {conflict} DO NOTHING
        """,  # noqa: S608  # constants
        (*view_of(user).values(), user.email.mailbox, user.password_hash),
    )
    if not cursor.rowcount:
        return False
    insert_events(connection, user.events)
    return True


def _use_key(connection: sqlite3.Connection, key: IdempotencyKey, user: User) -> None:
    """Store the key of a user who is about to be stored, and delete some expired keys."""
    expired = timestamp(user.registered_at - KEY_LIFETIME)
    delete_expired(connection, "idempotency_keys", "used_at", expired)
    cursor = connection.execute(
        """
        INSERT INTO idempotency_keys (digest, user_id, used_at) VALUES (?, ?, ?)
        ON CONFLICT DO UPDATE SET user_id = excluded.user_id, used_at = excluded.used_at WHERE used_at <= ?
        """,
        (key.digest, str(user.id), timestamp(user.registered_at), expired),
    )
    if not cursor.rowcount:
        raise IdempotencyKeyUsed


async def _records(file: DatabaseFile, condition: str, *values: int | str) -> list[UserRecord]:
    rows = await file.read(
        f"SELECT position, id, email, mailbox, age, password_hash, registered_at FROM users {condition}",  # noqa: S608  # constants
        values,
    )
    return [
        UserRecord(position, UUID(user_id), email, mailbox, age, password_hash, datetime.fromisoformat(registered_at))
        for position, user_id, email, mailbox, age, password_hash, registered_at in rows
    ]
