"""Users and their outbox in one SQLite file: the embedded default."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import aiosqlite

from usersvc.adapters.sqlite.archive import ENTRY, SqliteArchive, entry_of
from usersvc.adapters.sqlite.coalesced_reads import CoalescedReads
from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.read_models import Order, Page, UserView, view_of
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import Reserved, limits, reserve
from usersvc.domain.user import User

FORGOTTEN_AT_ONCE = 100
"""How many ended keys, and limits, one registration deletes; more than it adds, and few enough to cost nothing."""

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""An entry that no limit on mails puts off; an index has the same words."""
# In two halves, each of which reads the first rows of an index: the cost does not grow with the number of entries.
_DUE = f"""
    SELECT * FROM (SELECT {ENTRY} FROM outbox WHERE due_at <= ?1 ORDER BY due_at, id LIMIT ?3)
    UNION ALL
    SELECT * FROM (SELECT {ENTRY} FROM outbox WHERE due_at > ?2 AND {_UNLIMITED} ORDER BY due_at LIMIT ?3)
    LIMIT ?3
"""  # noqa: S608  # constants
_VIEW = "id, email, age, registered_at"
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
        """See ``Users.add``."""
        view = view_of(user)

        async def insert(connection: aiosqlite.Connection) -> None:
            if key is not None:
                await _use(connection, key, user)
            try:
                await connection.execute(
                    f"INSERT INTO users ({_VIEW}, mailbox, password_hash) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608  # constants
                    (*view.values(), user.email.mailbox, user.password_hash),
                )
            except sqlite3.IntegrityError as error:
                if "users.mailbox" not in str(error):
                    raise
                raise EmailAlreadyRegistered from None
            await _put(connection, user.events)

        await self._file.write(insert)

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """See ``Users.add_all``."""
        # One statement for all of them: with one for each, the write lock would be held several times as long.
        rows = json.dumps([(*view_of(user).values(), user.email.mailbox, user.password_hash) for user in users])

        async def insert(connection: aiosqlite.Connection) -> list[bool]:
            returned = await connection.execute_fetchall(
                f"""
                INSERT INTO users ({_VIEW}, mailbox, password_hash)
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
            await _put(
                connection,
                [event for user, is_new in zip(users, stored, strict=True) if is_new for event in user.events],
            )
            return stored

        return await self._file.write(insert)

    async def remove(self, user_id: UUID) -> bool:
        """See ``Users.remove``."""

        async def delete(connection: aiosqlite.Connection) -> bool:
            cursor = await connection.execute("DELETE FROM users WHERE id = ?", [str(user_id)])
            # Both tables are gone through whole, which takes 28 ms with 100,000 entries and 300,000 keys. Indexes
            # for it alone would make each registration two fifths slower to store.
            await connection.execute("DELETE FROM outbox WHERE user_id = ?", [str(user_id)])
            await connection.execute("DELETE FROM idempotency_keys WHERE user_id = ?", [str(user_id)])
            return bool(cursor.rowcount)

        return await self._file.write(delete)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """See ``Users.registered_with``."""
        rows = await self._file.read(
            f"""
            SELECT {_VIEW}, password_hash FROM users
            WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = ? AND used_at > ?)
            """,  # noqa: S608  # a constant
            [key.digest, timestamp(at - KEY_LIFETIME)],
        )
        return EarlierRegistration(_view(rows[0]), rows[0][4]) if rows else None

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        rows = await self._file.read(f"SELECT {_VIEW} FROM users WHERE id = ?", [str(user_id)])  # noqa: S608  # a constant
        return _view(rows[0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
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
                SELECT {_VIEW}, position FROM users {where} ORDER BY position {order} LIMIT ?
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


class SqliteOutbox:
    """An ``Outbox`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """See ``Outbox.lease``."""
        due = timestamp(now), timestamp(latest)
        # Looking is cheap and harms nobody; a write transaction is neither.
        if not await self._file.read(_DUE, (*due, 1)):
            return []

        async def take(connection: aiosqlite.Connection) -> list[OutboxEntry]:
            rows = await connection.execute_fetchall(_DUE, (*due, limit))
            leased = [
                replace(entry, attempts=entry.attempts + 1, due_at=until, lease=str(uuid4()))
                for entry in map(entry_of, map(tuple, rows))
            ]
            await connection.executemany(
                "UPDATE outbox SET attempts = ?, due_at = ?, lease = ? WHERE id = ?",
                [(entry.attempts, timestamp(until), entry.lease, entry.id) for entry in leased],
            )
            return leased

        return await self._file.write(take)

    async def delivered(self, entry: OutboxEntry) -> None:
        """See ``Outbox.delivered``."""
        await self._answer("DELETE FROM outbox", [], entry)

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """See ``Outbox.reschedule``."""
        await self._answer("UPDATE outbox SET due_at = ?, reason = ?, lease = NULL", [timestamp(due_at), reason], entry)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        """See ``Outbox.dead_letter``."""
        await self._answer("UPDATE outbox SET due_at = NULL, reason = ?, lease = NULL", [reason], entry)

    async def next_due(self) -> datetime | None:
        """See ``Outbox.next_due``."""
        [[due_at]] = await self._file.read("SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL")
        return None if due_at is None else datetime.fromisoformat(due_at)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """See ``Outbox.entries``."""
        rows = await self._file.read(
            f"SELECT {ENTRY} FROM outbox WHERE id > ? ORDER BY id LIMIT ?",  # noqa: S608  # a constant
            [after or 0, -1 if limit is None else limit],
        )
        return [entry_of(row) for row in rows]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """See ``Outbox.retry``."""
        changed = await self._file.change(
            """
            UPDATE outbox SET due_at = ?1, attempts = 0, lease = NULL
            WHERE id = ?2 AND (lease IS NULL OR due_at <= ?1)
            RETURNING id
            """,
            (timestamp(now), entry_id),
        )
        return bool(changed)

    async def state(self) -> OutboxState:
        """See ``Outbox.state``."""
        # The first entry that is pending is the oldest, as far as clocks went right.
        [[pending, in_all, oldest]] = await self._file.read(
            f"""
            SELECT (SELECT count(*) FROM outbox WHERE due_at IS NOT NULL), (SELECT count(*) FROM outbox),
                (SELECT occurred_at FROM outbox WHERE due_at IS NOT NULL AND {_UNLIMITED} ORDER BY id LIMIT 1)
            """  # noqa: S608  # a constant
        )
        return OutboxState(
            pending=pending,
            dead_lettered=in_all - pending,
            oldest=None if oldest is None else datetime.fromisoformat(oldest),
        )

    async def _answer(self, change: str, values: list[str], entry: OutboxEntry) -> None:
        await self._file.change(f"{change} WHERE id = ? AND lease = ?", (*values, entry.id, entry.lease))


async def _put(connection: aiosqlite.Connection, events: Sequence[UserRegistered]) -> None:
    """Store events in the outbox, due as soon as the limits on mails allow."""
    context = request_context.get()
    for event in events:
        occurred_at = timestamp(event.occurred_at)
        due_at = timestamp(await _reserve(connection, event))
        await connection.execute(
            """
            INSERT INTO outbox (user_id, email, occurred_at, due_at, reason, request_id, trace_id, span_id)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            """,
            (
                str(event.user_id),
                event.email,
                occurred_at,
                due_at,
                RATE_LIMITED if due_at > occurred_at else None,
                context and context.request_id,
                context and context.trace_id,
                context and context.span_id,
            ),
        )


async def _reserve(connection: aiosqlite.Connection, event: UserRegistered) -> datetime:
    """When the mail about an event is due; forgets some limits that have ended."""
    digests = json.dumps([*limits(event)])
    rows = await connection.execute_fetchall(
        "SELECT digest, since, until FROM mail_limits WHERE digest IN (SELECT value FROM json_each(?))", [digests]
    )
    before = {row[0]: Reserved(datetime.fromisoformat(row[1]), datetime.fromisoformat(row[2])) for row in rows}
    due_at, after = reserve(event, before)
    await connection.execute(
        """
        DELETE FROM mail_limits WHERE digest IN (
            SELECT digest FROM mail_limits WHERE until <= ? ORDER BY until LIMIT ?
        )
        """,
        (timestamp(event.occurred_at), FORGOTTEN_AT_ONCE),
    )
    await connection.executemany(
        "INSERT OR REPLACE INTO mail_limits (digest, since, until) VALUES (?, ?, ?)",
        [(digest, timestamp(each.since), timestamp(each.until)) for digest, each in after.items()],
    )
    return due_at


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


def _view(row: tuple[Any, ...]) -> UserView:
    return {"id": row[0], "email": row[1], "age": row[2], "registered_at": row[3]}
