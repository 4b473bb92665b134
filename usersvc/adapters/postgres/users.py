"""Users in PostgreSQL: for more than one host."""

import json
from collections.abc import Sequence
from dataclasses import astuple
from datetime import datetime
from typing import Self
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres.outbox import CHANNEL, PostgresOutbox
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.adapters.postgres.schema import ADDING, upgrade
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import RATE_LIMITED
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.mail_limits import limits
from usersvc.domain.user import User

EXPIRED_BATCH = 100
"""The maximum number of expired keys, and of expired mail limits, that one registration deletes."""

POOL_SIZE = 5
"""The number of connections of a process, without the one that listens for notifications."""

# PostgreSQL writes the JSON of a whole page, which is sent unchanged. Its functions for JSON objects add spaces.
_JSON = """
'{"id":"' || id || '","email":' || to_json(email) || ',"age":' || age || ',"registered_at":"'
    || to_char(registered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z') || '"}'
"""

_RECORD = "SELECT position, id, email, mailbox, age, password_hash, registered_at FROM users"

# Writes to the WAL, so that the commit waits for the disk and for synchronous_standby_names.
_WRITE_TO_WAL = "pg_logical_emit_message(true, 'usersvc', ''::text)"


def _addition(conflict: str) -> str:
    """The statement that adds users, in their order; returns the id and mailbox of each user that was added."""
    # The lock makes positions follow the order in which users become visible: it is taken before the position is drawn
    # and held until the commit. So transactions that add users run one after the other; all others run concurrently.
    # One statement is one transaction, so a client that hangs cannot hold the lock.
    # Constraints decide about keys and mailboxes, because the statement's snapshot is older than the lock. A key whose
    # user is not added, since the mailbox is taken, violates the constraint key_of_a_user, and nothing is stored.
    # `limited` to `due` are mail_limits.reserve for all events at once.
    return f"""
    WITH locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({ADDING})),
    expired_keys AS (
        DELETE FROM idempotency_keys WHERE digest IN (
            SELECT digest FROM idempotency_keys WHERE used_at <= $19 AND digest <> $18
            ORDER BY used_at LIMIT {EXPIRED_BATCH} FOR UPDATE SKIP LOCKED
        )
    ),
    claimed AS (
        INSERT INTO idempotency_keys (digest, user_id, used_at)
        SELECT $18, ($12::uuid[])[1], ($17::timestamptz[])[1] FROM locked WHERE $18::text IS NOT NULL
        ON CONFLICT (digest) DO UPDATE SET user_id = excluded.user_id, used_at = excluded.used_at
        WHERE idempotency_keys.used_at <= $19
        RETURNING digest
    ),
    stored (user_id, mailbox) AS (
        INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
        SELECT nextval('users_position'), id, mailbox, email, age, password_hash, registered_at FROM (
            SELECT given.* FROM locked,
                unnest($12::uuid[], $13::text[], $14::text[], $15::integer[], $16::text[], $17::timestamptz[])
                WITH ORDINALITY AS given (id, mailbox, email, age, password_hash, registered_at, number)
            WHERE $18 IS NULL OR EXISTS (SELECT FROM claimed)
            ORDER BY number
        ) AS ordered
        ON CONFLICT {conflict} DO NOTHING
        RETURNING id, mailbox
    ),
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
    SELECT * FROM stored
    """  # noqa: S608  # constants


_ADD = _addition("(mailbox)")
# The first of several users with one mailbox or id is stored.
_ADD_ALL = _addition("")


class PostgresUsers:
    """A ``Users`` in a PostgreSQL database; an asynchronous context manager that opens and closes it.

    ``outbox`` and ``archive`` use the same database.
    """

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE) -> None:
        """Create the store, without a connection; ``outbox.listen`` uses one more than ``pool_size``."""
        self._pool = PostgresPool(url, pool_size)
        self.outbox = PostgresOutbox(self._pool)
        self.archive = PostgresArchive(self._pool)

    async def __aenter__(self) -> Self:
        """Connect, and migrate the schema; raises ``StorageUnavailable`` as ``upgrade`` does."""
        await upgrade(self._pool)
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect."""
        await self._pool.close()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        try:
            added = await self._pool.run(_ADD, *_parameters([user], key))
        except StorageUnavailable as error:
            violation = error.__cause__
            if isinstance(violation, asyncpg.ForeignKeyViolationError) and violation.constraint_name == "key_of_a_user":
                raise EmailAlreadyRegistered from None
            raise
        # This user may have been stored by a first attempt whose response was lost.
        if not added and not await self._pool.run(f"SELECT {_WRITE_TO_WAL} FROM users WHERE id = $1", user.id):  # noqa: S608  # a constant
            raise EmailAlreadyRegistered if key is None else IdempotencyKeyUsed

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        # Of users with the same id and mailbox only the first is sent, so that every pair is distinct.
        first: dict[tuple[UUID, str], int] = {}
        for number, user in enumerate(users):
            first.setdefault((user.id, user.email.mailbox), number)
        values = _parameters([users[number] for number in first.values()])
        stored = {first[tuple(row)] for row in await self._pool.run(_ADD_ALL, *values, is_idempotent=False)}
        return [number in stored for number in range(len(users))]

    async def remove(self, user_id: UUID) -> bool:
        # key_of_a_user deletes the keys. The outbox is scanned: it is usually small, and an index on user_id would slow
        # down each registration and each mail.
        removed = await self._pool.run(
            """
            WITH mails AS (DELETE FROM outbox WHERE user_id = $1)
            DELETE FROM users WHERE id = $1 RETURNING id
            """,
            user_id,
            is_idempotent=False,
        )
        return bool(removed)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        # A user stored when a connection was lost may not have reached the standby yet; the write waits for it.
        rows = await self._pool.run(
            f"""
            SELECT {_JSON} AS view, password_hash, {_WRITE_TO_WAL} FROM users
            WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = $1 AND used_at > $2)
            """,  # noqa: S608  # constants
            key.digest,
            at - KEY_LIFETIME,
        )
        return EarlierRegistration(json.loads(rows[0]["view"]), rows[0]["password_hash"]) if rows else None

    async def find(self, user_id: UUID) -> UserView | None:
        rows = await self._pool.run(f"SELECT {_JSON} FROM users WHERE id = $1", user_id)  # noqa: S608  # a constant
        return json.loads(rows[0][0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        is_ascending = order is Order.ASC
        comparison, start, last = (">", 0, "max") if is_ascending else ("<", 2**63 - 1, "min")
        where = f"position {comparison} $2"
        values: list[int | str] = [start if after is None else after]
        if mailbox is not None:
            where += " AND mailbox = $3"
            values.append(mailbox)
        # One row more than requested shows whether there is a next page.
        [(lines, count, last_position)] = await self._pool.run(
            f"""
            SELECT
                convert_to(string_agg({_JSON}, chr(10) ORDER BY position {order}), 'UTF8'), count(*), {last}(position)
            FROM (SELECT * FROM users WHERE {where} ORDER BY position {order} LIMIT $1) AS shown
            """,  # noqa: S608  # constants
            limit + 1,
            *values,
        )
        if count <= limit:
            return Page(lines=lines or b"", next_after=None)
        # The next page begins with the extra row, so right after the position before it.
        next_after = last_position - 1 if is_ascending else last_position + 1
        return Page(lines=lines.rpartition(b"\n")[0], next_after=next_after)

    async def check(self) -> None:
        """Read a row and write to the WAL, which fails on a standby and on a full disk."""
        await self._pool.run(f"SELECT {_WRITE_TO_WAL}, (SELECT position FROM users LIMIT 1)")  # noqa: S608  # a constant


class PostgresArchive:
    """An ``Archive`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        rows = await self._pool.run(f"{_RECORD} WHERE position > $1 ORDER BY position LIMIT $2", after or 0, limit)
        return [UserRecord(*row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        matching = "WHERE mailbox = ANY ($1) OR id = ANY ($2) ORDER BY position"
        return [UserRecord(*row) for row in await self._pool.run(f"{_RECORD} {matching}", mailboxes, ids)]


def _parameters(users: Sequence[User], key: IdempotencyKey | None = None) -> list[object]:
    """The parameters of ``_addition``: the events, their request context, the limits on mails, the users, the key."""
    given = [(user.email.mailbox, event) for user in users for event in user.events]
    events = [(event.user_id, mailbox, event.email, event.occurred_at) for mailbox, event in given]
    context = request_context.get()
    limited = [
        (number, digest, limit.gap, limit.burst * limit.gap)
        for number, (_, event) in enumerate(given, start=1)
        for digest, limit in limits(event).items()
    ]
    rows = [
        (user.id, user.email.mailbox, user.email.typed, user.age.years, user.password_hash, user.registered_at)
        for user in users
    ]
    return [
        *_columns(events, 4),
        *(astuple(context) if context else (None, None, None)),
        *_columns(limited, 4),
        *_columns(rows, 6),
        *((key.digest, users[0].registered_at - KEY_LIFETIME) if key else (None, None)),
    ]


def _columns(rows: Sequence[tuple[object, ...]], count: int) -> Sequence[Sequence[object]]:
    """The columns of rows, as arrays for ``unnest``; ``count`` empty ones if there is no row."""
    return list(zip(*rows, strict=True)) or [()] * count
