"""The outbox in PostgreSQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime

from usersvc.adapters.postgres.listener import CHANNEL, listening
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.adapters.postgres.rows import ENTRY, entry_of
from usersvc.application.errors import StorageUnavailable
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import limits

FORGOTTEN_AT_ONCE = 100
"""How many ended keys, and limits, one registration deletes; more than it adds, and few enough to cost nothing."""

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""An entry that no limit on mails puts off; an index has the same words."""


class PostgresOutbox:
    """An ``Outbox`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    def listen(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Have something called, while the context lasts, when any process on any host has made an entry due.

        It is a courtesy, which a connection that fails can interrupt: who is called looks by itself too, every now and
        then. CockroachDB and YugabyteDB notify nobody, nor does PgBouncer when it shares sessions; that is noticed,
        logged once, and all there is to it.
        """
        return listening(self._pool, wake)

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        # Who comes second does not wait for the first, but takes what is left. A lease whose answer is lost is nobody's
        # until it ends. Each half reads the first rows of an index, and the ids are an array, since a join would be
        # planned for many more than there are: the cost does not grow with the number of entries.
        rows = await self._pool.run(
            f"""
            WITH due AS (
                SELECT id AS due_id, due_at AS since FROM outbox WHERE due_at <= $1
                ORDER BY due_at, id LIMIT $3 FOR UPDATE SKIP LOCKED
            ),
            put_off AS (
                SELECT id AS due_id, due_at AS since FROM outbox WHERE due_at > $2 AND {_UNLIMITED}
                ORDER BY due_at LIMIT $3 - (SELECT count(*) FROM due) FOR UPDATE SKIP LOCKED
            ),
            taken AS (SELECT * FROM due UNION ALL SELECT * FROM put_off),
            leased AS (
                UPDATE outbox SET attempts = attempts + 1, due_at = $4, lease = gen_random_uuid()
                WHERE id = ANY (ARRAY(SELECT due_id FROM taken)) RETURNING {ENTRY}
            )
            SELECT {ENTRY} FROM leased JOIN taken ON id = due_id ORDER BY since, id
            """,  # noqa: S608  # constants
            now,
            latest,
            limit,
            until,
        )
        return [entry_of(row) for row in rows]

    async def delivered(self, entry: OutboxEntry) -> None:
        await self._answer("DELETE FROM outbox", entry)

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        await self._answer("UPDATE outbox SET due_at = $3, reason = $4, lease = NULL", entry, due_at, reason)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        await self._answer("UPDATE outbox SET due_at = NULL, reason = $3, lease = NULL", entry, reason)

    async def next_due(self) -> datetime | None:
        [[due_at]] = await self._pool.run("SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL")
        found: datetime | None = due_at
        return found

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        rows = await self._pool.run(
            f"SELECT {ENTRY} FROM outbox WHERE id > $1 ORDER BY id LIMIT $2",  # noqa: S608  # a constant
            after or 0,
            limit,
        )
        return [entry_of(row) for row in rows]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        changed = await self._pool.run(
            f"""
            WITH changed AS (
                UPDATE outbox SET due_at = $1, attempts = 0, lease = NULL
                WHERE id = $2 AND (lease IS NULL OR due_at <= $1)
                RETURNING id
            )
            SELECT pg_notify('{CHANNEL}', '') FROM changed
            """,  # noqa: S608  # a constant
            now,
            entry_id,
        )
        return bool(changed)

    async def state(self) -> OutboxState:
        # The first entry that is pending is the oldest, as far as clocks went right. It is found at once, and asked for
        # by itself: when so many wait that they are not counted within STATEMENT_TIMEOUT, it is what matters.
        first = await self._pool.run(
            f"SELECT occurred_at FROM outbox WHERE due_at IS NOT NULL AND {_UNLIMITED} ORDER BY id LIMIT 1"  # noqa: S608  # a constant
        )
        oldest = first[0]["occurred_at"] if first else None
        try:
            [[pending, in_all]] = await self._pool.run(
                "SELECT (SELECT count(*) FROM outbox WHERE due_at IS NOT NULL), (SELECT count(*) FROM outbox)"
            )
        except StorageUnavailable:
            return OutboxState(pending=None, dead_lettered=None, oldest=oldest)
        return OutboxState(pending=pending, dead_lettered=in_all - pending, oldest=oldest)

    async def _answer(self, change: str, entry: OutboxEntry, *values: object) -> None:
        await self._pool.run(f"{change} WHERE id = $1 AND lease = $2", entry.id, entry.lease, *values)


def insert_events(told: str, context: int) -> str:
    """What stores events in the outbox, as ``mail_limits.reserve`` does: all mails under one limit together.

    Args:
        told: gives the events, of the columns user_id, email, occurred_at and number, which counts them.
        context: the first of seven parameters: three of the cause, then of all limits on all events the number of the
            event, the digest, the gap, and the burst as a time.
    """
    return f"""
told AS ({told}),
limited AS (
    SELECT number, occurred_at, digest, gap, burst FROM told JOIN unnest(
        ${context + 3}::bigint[], ${context + 4}::text[], ${context + 5}::interval[], ${context + 6}::interval[]
    ) AS given (number, digest, gap, burst) USING (number)
),
ended AS (
    DELETE FROM mail_limits WHERE digest = ANY (ARRAY(
        SELECT digest FROM mail_limits
        WHERE until <= (SELECT min(occurred_at) FROM limited) AND digest <> ALL (${context + 4}::text[])
        ORDER BY until LIMIT {FORGOTTEN_AT_ONCE} FOR UPDATE SKIP LOCKED
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
put AS (
    INSERT INTO outbox (user_id, email, occurred_at, due_at, reason, request_id, trace_id, span_id)
    SELECT user_id, email, occurred_at, due_at, CASE WHEN due_at > occurred_at THEN '{RATE_LIMITED}' END,
        ${context}::text, ${context + 1}::text, ${context + 2}::text
    FROM told JOIN due USING (number) ORDER BY number
)
"""  # noqa: S608  # constants


def limit_parameters(events: Sequence[UserRegistered]) -> list[list[object]]:
    """The last four parameters of ``_put``."""
    rows = [
        (number, digest, limit.gap, limit.burst * limit.gap)
        for number, event in enumerate(events, start=1)
        for digest, limit in limits(event).items()
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
