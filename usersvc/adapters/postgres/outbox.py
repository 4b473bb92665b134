"""The outbox in PostgreSQL, and notifications of its entries by LISTEN and NOTIFY."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import cast

import asyncpg

from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.application.errors import StorageUnavailable
from usersvc.application.outbox_entries import LAST, OutboxEntry, OutboxState
from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered

log = logging.getLogger(__name__)

CHANNEL = "usersvc_outbox"
"""Where processes announce entries that are due."""

DEBOUNCE, MAX_SILENCE, RECONNECT_PAUSE = 0.1, 15.0, 1.0
"""Seconds during which notifications are combined, so that not every registration makes every process query the
outbox; seconds without any after which the connection is checked; seconds between two attempts to connect."""

_ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease::text, request_id, trace_id, span_id"

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""The condition of entries that no mail limit delays; the index ``outbox_unlimited`` has the same one."""


class PostgresOutbox:
    """An ``Outbox`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: postgres_pool.PostgresPool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def listen(self, wake: Callable[[], None]) -> AsyncIterator[None]:
        """Call ``wake`` when a process on any host has made an entry due, and when notifications may have been lost."""
        task = asyncio.create_task(self._listen(wake))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _listen(self, wake: Callable[[], None]) -> None:
        is_logged, received = False, asyncio.Event()
        while True:
            try:
                async with self._pool.session() as connection:
                    connection.add_termination_listener(lambda *_: received.set())
                    async with asyncio.timeout(postgres_pool.RESPONSE_TIMEOUT):
                        await connection.add_listener(CHANNEL, lambda *_: received.set())
                    is_logged = False
                    while True:
                        wake()
                        received.clear()
                        await asyncio.sleep(DEBOUNCE)
                        with suppress(TimeoutError):
                            await asyncio.wait_for(received.wait(), MAX_SILENCE)
                        # It fails if the connection is lost, which looks like silence.
                        await connection.execute("SELECT 1", timeout=postgres_pool.RESPONSE_TIMEOUT)
            except StorageUnavailable as error:
                if not is_logged:
                    log.warning("cannot listen for notifications, retrying: %s", error)
                is_logged = True
            await asyncio.sleep(RECONNECT_PAUSE)

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
        # Ids follow the time of registration. The counts are read separately: they may exceed statement_timeout.
        [[oldest]] = await self._pool.run(
            f"SELECT (SELECT occurred_at FROM outbox WHERE due_at IS NOT NULL AND {_UNLIMITED} ORDER BY id LIMIT 1)"  # noqa: S608  # a constant
        )
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
