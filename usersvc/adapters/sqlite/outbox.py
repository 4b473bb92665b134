"""The outbox in the SQLite file."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.application.clock import timestamp
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import Reserved, limits, reserve

EXPIRED_BATCH = 100
"""The maximum number of expired keys, and of expired mail limits, that one registration deletes."""

_ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""The condition of entries that no mail limit delays; the index ``outbox_unlimited`` has the same one."""

# Each half reads the first rows of an index, so the cost does not grow with the number of entries.
_DUE = f"""
    SELECT * FROM (SELECT {_ENTRY} FROM outbox WHERE due_at <= ?1 ORDER BY due_at, id LIMIT ?3)
    UNION ALL
    SELECT * FROM (SELECT {_ENTRY} FROM outbox WHERE due_at > ?2 AND {_UNLIMITED} ORDER BY due_at LIMIT ?3)
    LIMIT ?3
"""  # noqa: S608  # constants


class SqliteOutbox:
    """An ``Outbox`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        due = timestamp(now), timestamp(latest)
        # A read is cheap; a write transaction locks the file.
        if not await self._file.read(_DUE, (*due, 1)):
            return []

        def lease_due(connection: sqlite3.Connection) -> list[OutboxEntry]:
            leased = [
                replace(entry, attempts=entry.attempts + 1, due_at=until, lease=str(uuid4()))
                for entry in map(_entry, connection.execute(_DUE, (*due, limit)))
            ]
            connection.executemany(
                "UPDATE outbox SET attempts = ?, due_at = ?, lease = ? WHERE id = ?",
                [(entry.attempts, timestamp(until), entry.lease, entry.id) for entry in leased],
            )
            return leased

        return await self._file.write(lease_due)

    async def delivered(self, entry: OutboxEntry) -> None:
        await self._file.change("DELETE FROM outbox WHERE id = ? AND lease = ?", (entry.id, entry.lease))

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime | None, reason: str) -> None:
        await self._file.change(
            "UPDATE outbox SET due_at = ?, reason = ?, lease = NULL WHERE id = ? AND lease = ?",
            (None if due_at is None else timestamp(due_at), reason, entry.id, entry.lease),
        )

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        await self.reschedule(entry, due_at=None, reason=reason)

    async def next_due(self) -> datetime | None:
        [[due_at]] = await self._file.read("SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL")
        return _time(due_at)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        rows = await self._file.read(
            f"SELECT {_ENTRY} FROM outbox WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608  # a constant
            [after or 0, -1 if limit is None else limit],
        )
        return [_entry(row) for row in rows]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        changed = await self._file.change(
            """
            UPDATE outbox SET due_at = ?1, attempts = 0, lease = NULL
            WHERE id = ?2 AND (lease IS NULL OR due_at <= ?1) RETURNING id
            """,
            (timestamp(now), entry_id),
        )
        return bool(changed)

    async def state(self) -> OutboxState:
        # Ids follow the time of registration, so the first pending entry is the oldest.
        [[pending, total, oldest]] = await self._file.read(
            f"""
            SELECT (SELECT count(*) FROM outbox WHERE due_at IS NOT NULL), (SELECT count(*) FROM outbox),
                (SELECT occurred_at FROM outbox WHERE due_at IS NOT NULL AND {_UNLIMITED} ORDER BY id LIMIT 1)
            """  # noqa: S608  # a constant
        )
        return OutboxState(pending=pending, dead_lettered=total - pending, oldest=_time(oldest))


def insert_events(connection: sqlite3.Connection, events: Sequence[UserRegistered]) -> None:
    """Store events in the outbox, due as soon as the mail limits allow."""
    context = request_context.get()
    origin = (None, None, None) if context is None else (context.request_id, context.trace_id, context.span_id)
    for event in events:
        due_at = _reserve(connection, event)
        reason = RATE_LIMITED if due_at > event.occurred_at else None
        connection.execute(
            """
            INSERT INTO outbox (user_id, email, occurred_at, due_at, reason, request_id, trace_id, span_id)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (str(event.user_id), event.email, timestamp(event.occurred_at), timestamp(due_at), reason, *origin),
        )


def _reserve(connection: sqlite3.Connection, event: UserRegistered) -> datetime:
    """Reserve the mail of an event and return when it is due; delete some expired limits."""
    rows = connection.execute(
        "SELECT digest, since, until FROM mail_limits WHERE digest IN (SELECT value FROM json_each(?))",
        [json.dumps([*limits(event)])],
    )
    before = {digest: Reserved(*map(datetime.fromisoformat, times)) for digest, *times in rows}
    due_at, after = reserve(event, before)
    delete_expired(connection, "mail_limits", "until", timestamp(event.occurred_at))
    connection.executemany(
        "INSERT OR REPLACE INTO mail_limits (digest, since, until) VALUES (?, ?, ?)",
        [(digest, timestamp(limit.since), timestamp(limit.until)) for digest, limit in after.items()],
    )
    return due_at


def delete_expired(connection: sqlite3.Connection, table: str, column: str, until: str) -> None:
    """Delete some rows of a table of digests whose ``column`` has a time up to ``until``."""
    connection.execute(
        f"DELETE FROM {table} WHERE digest IN"  # noqa: S608  # constants
        f" (SELECT digest FROM {table} WHERE {column} <= ? ORDER BY {column} LIMIT {EXPIRED_BATCH})",
        [until],
    )


def _entry(row: Sequence[Any]) -> OutboxEntry:
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, *context = row
    event = UserRegistered(UUID(user_id), email, datetime.fromisoformat(occurred_at))
    origin = RequestContext(*context) if context[0] else None
    return OutboxEntry(entry_id, event, attempts, _time(due_at), reason, lease, origin)


def _time(stored: str | None) -> datetime | None:
    return None if stored is None else datetime.fromisoformat(stored)
