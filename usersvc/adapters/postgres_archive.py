"""The PostgreSQL database as an archive: what it keeps, read and stored as it is."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres_pool import LISTENING, PostgresPool
from usersvc.application.ports import (
    UNFINISHED,
    Cause,
    KeyRecord,
    OutboxEntry,
    Places,
    StorageUnavailable,
    UserRecord,
)
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash

ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"
"""The columns that ``entry_of`` takes."""

_RECORD = "position, id, email, mailbox, age, password_hash, registered_at"
_KEY = "digest, user_id, used_at"
# It is there only in a database that is or was a copy.
_IS_MARKED = "SELECT to_regclass('usersvc_copy') IS NOT NULL"


class PostgresArchive:
    """A ``CompleteArchive`` in the database of a ``PostgresUsers``.

    Whatever it stores, it can store again: each statement is run again when its answer is lost.
    """

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """See ``Archive.users``."""
        rows = await self._pool.run(
            f"SELECT {_RECORD} FROM users WHERE position > $1 ORDER BY position LIMIT $2",  # noqa: S608  # a constant
            0 if after is None else after,
            limit,
        )
        return [_record(row) for row in rows]

    async def entries(self, *, after: int | None, limit: int) -> list[OutboxEntry]:
        """See ``CompleteArchive.entries``."""
        rows = await self._pool.run(
            f"SELECT {ENTRY} FROM outbox WHERE id > $1 ORDER BY id LIMIT $2",  # noqa: S608  # a constant
            0 if after is None else after,
            limit,
        )
        return [replace(entry_of(row), lease=None) for row in rows]

    async def keys(self, *, after: str | None, limit: int) -> list[KeyRecord]:
        """See ``CompleteArchive.keys``."""
        rows = await self._pool.run(
            f"SELECT {_KEY} FROM idempotency_keys WHERE digest > $1 ORDER BY digest LIMIT $2",  # noqa: S608  # a constant
            after or "",
            limit,
        )
        return [KeyRecord(row["digest"], uuid_of(row["user_id"]), row["used_at"]) for row in rows]

    async def places(self) -> Places:
        """See ``CompleteArchive.places``."""
        # CockroachDB: a sequence is no table there; pg_sequences tells the same.
        [[position, entry]] = await self._pool.run(
            """
            SELECT (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM users_position),
                (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM outbox_id_seq)
            """
        )
        return Places(position=position, entry=entry)

    async def holders(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.holders``."""
        rows = await self._pool.run(
            f"SELECT {_RECORD} FROM users WHERE mailbox = ANY ($1) OR id = ANY ($2) ORDER BY position",  # noqa: S608  # a constant
            list(mailboxes),
            list(ids),
        )
        return [_record(row) for row in rows]

    async def count(self) -> int:
        """See ``Archive.count``."""
        [[count]] = await self._pool.run("SELECT count(*) FROM users")
        return int(count)

    async def begin_copy(self) -> bool:
        """See ``CompleteArchive.begin_copy``; nor does it when a service runs on it, whatever it holds."""
        if not await self._is_marked():
            await self._pool.run(
                """
                CREATE TABLE IF NOT EXISTS usersvc_copy (
                    singleton boolean PRIMARY KEY CHECK (singleton), finished boolean NOT NULL
                )
                """
            )
        # CockroachDB shows no sessions there, nor listens any: a service that runs is not seen.
        marked = await self._pool.run(
            f"""
            INSERT INTO usersvc_copy (singleton, finished)
            SELECT true, false WHERE
                (EXISTS (SELECT FROM usersvc_copy)
                    OR NOT EXISTS (SELECT FROM users) AND NOT EXISTS (SELECT FROM outbox))
                AND NOT EXISTS (
                    SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = '{LISTENING}'
                )
            ON CONFLICT (singleton) DO UPDATE SET finished = false RETURNING singleton
            """  # noqa: S608  # a constant
        )
        return bool(marked)

    async def put_users(self, records: Sequence[UserRecord], *, instead_of: Sequence[int]) -> None:
        """See ``CompleteArchive.put_users``."""
        # Whoever is in the way is gone before the first comes: the count takes all of them. Keys go with their users.
        await self._pool.run(
            f"""
            WITH gone AS (
                DELETE FROM users WHERE position = ANY ($8) OR mailbox = ANY ($4) OR id = ANY ($2) RETURNING id
            ),
            told AS (DELETE FROM outbox WHERE user_id IN (SELECT id FROM gone))
            INSERT INTO users ({_RECORD})
            SELECT {_RECORD} FROM (SELECT count(*) FROM gone) AS first, unnest(
                $1::bigint[], $2::uuid[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::timestamptz[]
            ) AS given ({_RECORD})
            """,  # noqa: S608  # constants
            [user.position for user in records],
            [user.id for user in records],
            [user.email for user in records],
            [user.mailbox for user in records],
            [user.age for user in records],
            [user.password_hash for user in records],
            [user.registered_at for user in records],
            list(instead_of),
        )

    async def put_entries(self, records: Sequence[OutboxEntry], *, instead_of: Sequence[int]) -> None:
        """See ``CompleteArchive.put_entries``."""
        causes = [entry.cause for entry in records]
        await self._pool.run(
            f"""
            WITH gone AS (DELETE FROM outbox WHERE id = ANY ($11) OR id = ANY ($1) RETURNING id)
            INSERT INTO outbox ({ENTRY})
            SELECT id, user_id, email, occurred_at, attempts, due_at, reason, NULL, request_id, trace_id, span_id
            FROM (SELECT count(*) FROM gone) AS first, unnest(
                $1::bigint[], $2::uuid[], $3::text[], $4::timestamptz[], $5::integer[], $6::timestamptz[], $7::text[],
                $8::text[], $9::text[], $10::text[]
            ) AS given (
                id, user_id, email, occurred_at, attempts, due_at, reason, request_id, trace_id, span_id
            )
            """,  # noqa: S608  # constants
            [entry.id for entry in records],
            [entry.event.user_id for entry in records],
            [entry.event.email for entry in records],
            [entry.event.occurred_at for entry in records],
            [entry.attempts for entry in records],
            [entry.due_at for entry in records],
            [entry.reason for entry in records],
            [cause and cause.request_id for cause in causes],
            [cause and cause.trace_id for cause in causes],
            [cause and cause.span_id for cause in causes],
            list(instead_of),
        )

    async def put_keys(self, records: Sequence[KeyRecord], *, instead_of: Sequence[str]) -> None:
        """See ``CompleteArchive.put_keys``."""
        await self._pool.run(
            f"""
            WITH gone AS (
                DELETE FROM idempotency_keys WHERE digest = ANY ($4) OR digest = ANY ($1) RETURNING digest
            )
            INSERT INTO idempotency_keys ({_KEY})
            SELECT {_KEY} FROM (SELECT count(*) FROM gone) AS first,
                unnest($1::text[], $2::uuid[], $3::timestamptz[]) AS given ({_KEY})
            WHERE EXISTS (SELECT FROM users WHERE users.id = given.user_id)
            """,  # noqa: S608  # constants
            [key.digest for key in records],
            [key.user_id for key in records],
            [key.used_at for key in records],
            list(instead_of),
        )

    async def put_places(self, places: Places) -> None:
        """See ``CompleteArchive.put_places``."""
        for sequence, place in (("users_position", places.position), ("outbox_id_seq", places.entry)):
            await self._pool.run(
                f"""
                SELECT setval('{sequence}', $1) FROM {sequence}
                WHERE $1::bigint > CASE WHEN is_called THEN last_value ELSE 0 END
                """,  # noqa: S608  # constants
                place,
            )

    async def end_copy(self) -> None:
        """See ``CompleteArchive.end_copy``."""
        await self._pool.run("UPDATE usersvc_copy SET finished = true")

    async def stand_alone(self) -> None:
        """See ``CompleteArchive.stand_alone``."""
        if await self._is_marked():
            # The table stays: whoever runs the service need not be who made it.
            await self._pool.run("DELETE FROM usersvc_copy WHERE finished")
            if await self._pool.run("SELECT FROM usersvc_copy"):
                raise StorageUnavailable(UNFINISHED)

    async def _is_marked(self) -> bool:
        [[is_marked]] = await self._pool.run(_IS_MARKED)
        return bool(is_marked)


def uuid_of(value: UUID) -> UUID:
    """The same, but not of asyncpg's own type."""
    return UUID(int=value.int)


def entry_of(row: asyncpg.Record) -> OutboxEntry:
    """An entry, from what is in ``ENTRY``."""
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id = row
    return OutboxEntry(
        id=entry_id,
        event=UserRegistered(uuid_of(user_id), email, occurred_at),
        attempts=attempts,
        due_at=due_at,
        reason=reason,
        lease=None if lease is None else str(lease),
        cause=None if request_id is None else Cause(request_id, trace_id, span_id),
    )


def _record(row: asyncpg.Record) -> UserRecord:
    return UserRecord(**{**row, "id": uuid_of(row["id"]), "password_hash": PasswordHash(row["password_hash"])})
