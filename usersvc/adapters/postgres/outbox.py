"""The outbox in PostgreSQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import astuple
from datetime import datetime
from typing import cast

import asyncpg

from usersvc.adapters.postgres.listener import CHANNEL, listening
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.application.errors import StorageUnavailable
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import limits
from usersvc.domain.user import User

EXPIRED_BATCH = 100
"""The maximum number of expired keys, and of expired mail limits, that one registration deletes."""

_ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease::text, request_id, trace_id, span_id"

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""The condition of entries that no mail limit delays; the index ``outbox_unlimited`` has the same one."""


class PostgresOutbox:
    """An ``Outbox`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    def listen(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Call ``wake`` when a process on any host has made an entry due; notifications may be lost."""
        return listening(self._pool, wake)

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        # Concurrent calls skip each other's rows. Each half reads the first rows of an index, and the ids are an array
        # because a join would be planned for many more rows, so the cost does not grow with the number of entries. If
        # the response is lost, the entries stay leased until the lease expires.
        rows = await self._pool.run(
            f"""
            WITH due AS (
                SELECT id AS due_id, due_at AS since FROM outbox WHERE due_at <= $1
                ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
            ),
            delayed AS (
                SELECT id AS due_id, due_at AS since FROM outbox WHERE due_at > $2 AND {_UNLIMITED}
                ORDER BY due_at LIMIT $3 - (SELECT count(*) FROM due) FOR UPDATE SKIP LOCKED
            ),
            selected AS (SELECT * FROM due UNION ALL SELECT * FROM delayed),
            leased AS (
                UPDATE outbox SET attempts = attempts + 1, due_at = $4, lease = gen_random_uuid()
                WHERE id = ANY (ARRAY(SELECT due_id FROM selected)) RETURNING {_ENTRY}
            )
            SELECT {_ENTRY} FROM leased JOIN selected ON id = due_id ORDER BY since, id
            """,  # noqa: S608  # constants
            now,
            latest,
            limit,
            until,
        )
        return [_entry_of(row) for row in rows]

    async def delivered(self, entry: OutboxEntry) -> None:
        await self._settle(entry, "DELETE FROM outbox")

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        await self._settle(entry, "UPDATE outbox SET due_at = $3, reason = $4, lease = NULL", due_at, reason)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        await self._settle(entry, "UPDATE outbox SET due_at = NULL, reason = $3, lease = NULL", reason)

    async def next_due(self) -> datetime | None:
        [[due_at]] = await self._pool.run("SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL")
        return cast("datetime | None", due_at)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        rows = await self._pool.run(
            f"SELECT {_ENTRY} FROM outbox WHERE id > $1 ORDER BY id LIMIT $2",  # noqa: S608  # a constant
            after or 0,
            limit,
        )
        return [_entry_of(row) for row in rows]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        changed = await self._pool.run(
            f"""
            UPDATE outbox SET due_at = $1, attempts = 0, lease = NULL
            WHERE id = $2 AND (lease IS NULL OR due_at <= $1) RETURNING pg_notify('{CHANNEL}', '')
            """,  # noqa: S608  # a constant
            now,
            entry_id,
        )
        return bool(changed)

    async def state(self) -> OutboxState:
        # Ids follow the time of registration. The counts are read separately: they may exceed STATEMENT_TIMEOUT.
        first = await self._pool.run(
            f"SELECT occurred_at FROM outbox WHERE due_at IS NOT NULL AND {_UNLIMITED} ORDER BY id LIMIT 1"  # noqa: S608  # a constant
        )
        oldest = first[0]["occurred_at"] if first else None
        try:
            [[pending, total]] = await self._pool.run(
                "SELECT (SELECT count(*) FROM outbox WHERE due_at IS NOT NULL), (SELECT count(*) FROM outbox)"
            )
        except StorageUnavailable:
            return OutboxState(pending=None, dead_lettered=None, oldest=oldest)
        return OutboxState(pending=pending, dead_lettered=total - pending, oldest=oldest)

    async def _settle(self, entry: OutboxEntry, change: str, *values: object) -> None:
        await self._pool.run(f"{change} WHERE id = $1 AND lease = $2", entry.id, entry.lease, *values)


def _entry_of(row: asyncpg.Record) -> OutboxEntry:
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, *context = row
    event = UserRegistered(user_id, email, occurred_at)
    return OutboxEntry(
        entry_id, event, attempts, due_at, reason, lease, RequestContext(*context) if context[0] else None
    )


INSERT_EVENTS = f"""
events AS (
    SELECT * FROM stored JOIN unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[])
        WITH ORDINALITY AS given (user_id, mailbox, email, occurred_at, number) USING (user_id, mailbox)
),
limited AS (
    SELECT number, occurred_at, digest, gap, burst
    FROM events JOIN unnest($8::bigint[], $9::text[], $10::interval[], $11::interval[])
        AS given (number, digest, gap, burst) USING (number)
),
expired_limits AS (
    DELETE FROM mail_limits WHERE digest = ANY (ARRAY(
        SELECT digest FROM mail_limits
        WHERE until <= (SELECT min(occurred_at) FROM limited) AND digest <> ALL ($9::text[])
        ORDER BY until LIMIT {EXPIRED_BATCH} FOR UPDATE SKIP LOCKED
    ))
),
reserved AS (
    INSERT INTO mail_limits AS before (digest, since, until)
    SELECT digest, min(occurred_at), min(occurred_at) + sum(gap) FROM limited GROUP BY digest ORDER BY digest
    ON CONFLICT (digest) DO UPDATE SET
        since = CASE WHEN before.until <= excluded.since THEN excluded.since
            ELSE least(before.since, excluded.since) END,
        until = greatest(excluded.since, before.until - greatest(before.since - excluded.since, interval '0'))
            + (excluded.until - excluded.since)
    RETURNING digest, until
),
due AS (
    SELECT number, greatest(occurred_at, max(until - behind - burst)) AS due_at FROM (
        SELECT *, sum(gap) OVER (PARTITION BY digest ORDER BY number DESC) - gap AS behind FROM limited
    ) AS each JOIN reserved USING (digest) GROUP BY number, occurred_at
),
inserted AS (
    INSERT INTO outbox (user_id, email, occurred_at, due_at, reason, request_id, trace_id, span_id)
    SELECT user_id, email, occurred_at, due_at, CASE WHEN due_at > occurred_at THEN '{RATE_LIMITED}' END,
        $5::text, $6::text, $7::text
    FROM events JOIN due USING (number) ORDER BY number
    RETURNING pg_notify('{CHANNEL}', '')
)
"""  # noqa: S608  # constants
"""The CTEs that store the events of the users in the CTE ``stored (user_id, mailbox)``, and announce them.

They contain ``mail_limits.reserve`` in SQL, for all events at once. The parameters are those of ``event_parameters``.
"""


def event_parameters(users: Sequence[User]) -> list[object]:
    """The parameters $1 to $11 of ``INSERT_EVENTS``: the events, the request context, and the limits on the mails."""
    given = [(user.email.mailbox, event) for user in users for event in user.events]
    events = [(event.user_id, mailbox, event.email, event.occurred_at) for mailbox, event in given]
    limited = [
        (number, digest, limit.gap, limit.burst * limit.gap)
        for number, (_, event) in enumerate(given, start=1)
        for digest, limit in limits(event).items()
    ]
    context = request_context.get()
    return [*columns(events, 4), *(astuple(context) if context else (None, None, None)), *columns(limited, 4)]


def columns(rows: Sequence[tuple[object, ...]], count: int) -> Sequence[Sequence[object]]:
    """The columns of rows, as arrays for ``unnest``; ``count`` empty ones if there is no row."""
    return list(zip(*rows, strict=True)) or [()] * count
