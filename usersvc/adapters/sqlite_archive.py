"""The SQLite file as an archive: what it keeps, read and stored as it is."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import aiosqlite

from usersvc.adapters.sqlite_file import DatabaseFile
from usersvc.application.ports import (
    UNFINISHED,
    Cause,
    KeyRecord,
    OutboxEntry,
    Places,
    StorageUnavailable,
    UserRecord,
    timestamp,
)
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash

ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"
"""The columns that ``entry_of`` takes."""

_RECORD = "position, id, email, mailbox, age, password_hash, registered_at"
_KEY = "digest, user_id, used_at"
# It is there only in a file that is or was a copy.
_IS_MARKED = "SELECT 1 FROM sqlite_schema WHERE name = 'usersvc_copy'"


class SqliteArchive:
    """A ``CompleteArchive`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """See ``Archive.users``."""
        rows = await self._file.read(
            f"SELECT {_RECORD} FROM users WHERE position > ? ORDER BY position LIMIT ?",  # noqa: S608  # a constant
            [0 if after is None else after, limit],
        )
        return [_record(row) for row in rows]

    async def entries(self, *, after: int | None, limit: int) -> list[OutboxEntry]:
        """See ``CompleteArchive.entries``."""
        rows = await self._file.read(
            f"SELECT {ENTRY} FROM outbox WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608  # a constant
            [0 if after is None else after, limit],
        )
        return [replace(entry_of(row), lease=None) for row in rows]

    async def keys(self, *, after: str | None, limit: int) -> list[KeyRecord]:
        """See ``CompleteArchive.keys``."""
        rows = await self._file.read(
            f"""
            SELECT {_KEY} FROM idempotency_keys
            WHERE digest > ? AND EXISTS (SELECT 1 FROM users WHERE id = user_id)
            ORDER BY digest LIMIT ?
            """,  # noqa: S608  # a constant
            [after or "", limit],
        )
        return [KeyRecord(digest, UUID(user_id), datetime.fromisoformat(used_at)) for digest, user_id, used_at in rows]

    async def places(self) -> Places:
        """See ``CompleteArchive.places``."""
        given_out = dict(await self._file.read("SELECT name, seq FROM sqlite_sequence"))
        return Places(position=given_out.get("users", 0), entry=given_out.get("outbox", 0))

    async def holders(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.holders``."""
        rows = await self._file.read(
            f"""
            SELECT {_RECORD} FROM users
            WHERE mailbox IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))
            ORDER BY position
            """,  # noqa: S608  # a constant
            [json.dumps([*mailboxes]), json.dumps([str(user_id) for user_id in ids])],
        )
        return [_record(row) for row in rows]

    async def count(self) -> int:
        """See ``Archive.count``."""
        [[count]] = await self._file.read("SELECT count(*) FROM users")
        return int(count)

    async def begin_copy(self) -> bool:
        """See ``CompleteArchive.begin_copy``."""

        async def begin(connection: aiosqlite.Connection) -> bool:
            await connection.execute(
                """
                CREATE TABLE IF NOT EXISTS usersvc_copy (
                    singleton INTEGER PRIMARY KEY CHECK (singleton = 1), finished INTEGER NOT NULL
                ) STRICT
                """
            )
            marked = await connection.execute_fetchall(
                """
                INSERT INTO usersvc_copy (singleton, finished)
                SELECT 1, 0 WHERE EXISTS (SELECT 1 FROM usersvc_copy)
                    OR NOT EXISTS (SELECT 1 FROM users) AND NOT EXISTS (SELECT 1 FROM outbox)
                ON CONFLICT DO UPDATE SET finished = 0 RETURNING singleton
                """
            )
            if not marked:
                await connection.execute("DROP TABLE usersvc_copy")
            return bool(marked)

        return await self._file.write(begin)

    async def put_users(self, records: Sequence[UserRecord], *, instead_of: Sequence[int]) -> None:
        """See ``CompleteArchive.put_users``."""
        rows = _rows(
            (
                user.position,
                str(user.id),
                user.email,
                user.mailbox,
                user.age,
                user.password_hash,
                timestamp(user.registered_at),
            )
            for user in records
        )

        async def put(connection: aiosqlite.Connection) -> None:
            gone = [
                user_id
                for [user_id] in await connection.execute_fetchall(
                    """
                    SELECT id FROM users WHERE position IN (SELECT value FROM json_each(?1))
                        OR mailbox IN (SELECT json_extract(value, '$[3]') FROM json_each(?2))
                        OR id IN (SELECT json_extract(value, '$[1]') FROM json_each(?2))
                    """,
                    [json.dumps([*instead_of]), rows],
                )
            ]
            if gone:
                for statement in (
                    "DELETE FROM outbox WHERE user_id IN (SELECT value FROM json_each(?))",
                    "DELETE FROM idempotency_keys WHERE user_id IN (SELECT value FROM json_each(?))",
                    "DELETE FROM users WHERE id IN (SELECT value FROM json_each(?))",
                ):
                    await connection.execute(statement, [json.dumps(gone)])
            await connection.execute(
                f"INSERT INTO users ({_RECORD}) {_selected(7)}",  # constants
                [rows],
            )

        await self._file.write(put)

    async def put_entries(self, records: Sequence[OutboxEntry], *, instead_of: Sequence[int]) -> None:
        """See ``CompleteArchive.put_entries``."""
        rows = _rows(
            (
                entry.id,
                str(entry.event.user_id),
                entry.event.email,
                timestamp(entry.event.occurred_at),
                entry.attempts,
                None if entry.due_at is None else timestamp(entry.due_at),
                entry.reason,
                None,
                *((None, None, None) if entry.cause is None else astuple(entry.cause)),
            )
            for entry in records
        )
        await self._put(
            "outbox",
            "id",
            f"INSERT OR REPLACE INTO outbox ({ENTRY}) {_selected(11)}",  # constants
            rows,
            instead_of,
        )

    async def put_keys(self, records: Sequence[KeyRecord], *, instead_of: Sequence[str]) -> None:
        """See ``CompleteArchive.put_keys``."""
        rows = _rows((key.digest, str(key.user_id), timestamp(key.used_at)) for key in records)
        await self._put(
            "idempotency_keys",
            "digest",
            f"""
            INSERT OR REPLACE INTO idempotency_keys ({_KEY}) {_selected(3)}
            AND EXISTS (SELECT 1 FROM users WHERE id = json_extract(value, '$[1]'))
            """,  # noqa: S608  # constants
            rows,
            instead_of,
        )

    async def put_places(self, places: Places) -> None:
        """See ``CompleteArchive.put_places``."""

        async def put(connection: aiosqlite.Connection) -> None:
            for table, place in (("users", places.position), ("outbox", places.entry)):
                # It has a row for a table only when something was in there.
                await connection.execute(
                    """
                    INSERT INTO sqlite_sequence (name, seq)
                    SELECT ?1, 0 WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)
                    """,
                    [table],
                )
                await connection.execute(
                    "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = ?",
                    [place, table],
                )

        await self._file.write(put)

    async def end_copy(self) -> None:
        """See ``CompleteArchive.end_copy``."""
        await self._file.change("UPDATE usersvc_copy SET finished = 1")

    async def stand_alone(self) -> None:
        """See ``CompleteArchive.stand_alone``."""
        # Looking is what almost all need, and harms nobody.
        if not await self._file.read(_IS_MARKED):
            return

        async def forget(connection: aiosqlite.Connection) -> None:
            if await connection.execute_fetchall(_IS_MARKED):
                if await connection.execute_fetchall("SELECT 1 FROM usersvc_copy WHERE NOT finished"):
                    raise StorageUnavailable(UNFINISHED)
                await connection.execute("DROP TABLE usersvc_copy")

        await self._file.write(forget)

    async def _put(self, table: str, column: str, insert: str, rows: str, instead_of: Sequence[int | str]) -> None:
        async def put(connection: aiosqlite.Connection) -> None:
            await connection.execute(
                f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))",  # noqa: S608  # constants
                [json.dumps([*instead_of])],
            )
            await connection.execute(insert, [rows])

        await self._file.write(put)


def entry_of(row: tuple[Any, ...]) -> OutboxEntry:
    """An entry, from what is in ``ENTRY``."""
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id = row
    return OutboxEntry(
        id=entry_id,
        event=UserRegistered(UUID(user_id), email, datetime.fromisoformat(occurred_at)),
        attempts=attempts,
        due_at=None if due_at is None else datetime.fromisoformat(due_at),
        reason=reason,
        lease=lease,
        cause=None if request_id is None else Cause(request_id, trace_id, span_id),
    )


def _record(row: tuple[Any, ...]) -> UserRecord:
    position, user_id, email, mailbox, age, password_hash, registered_at = row
    return UserRecord(
        position=position,
        id=UUID(user_id),
        email=email,
        mailbox=mailbox,
        age=age,
        password_hash=PasswordHash(password_hash),
        registered_at=datetime.fromisoformat(registered_at),
    )


def _rows(rows: Iterable[Sequence[int | str | None]]) -> str:
    """Rows for ``_selected``: with one statement for each, the write lock would be held several times as long."""
    return json.dumps([*rows])


def _selected(columns: int) -> str:
    """What gives the rows of ``_rows``, of so many columns, in their order."""
    names = ", ".join(f"json_extract(value, '$[{column}]')" for column in range(columns))
    return f"SELECT {names} FROM json_each(?) WHERE true"  # noqa: S608  # figures
