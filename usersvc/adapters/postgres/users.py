"""Users in PostgreSQL: for more than one host."""

from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres.archive import PostgresArchive
from usersvc.adapters.postgres.listener import CHANNEL
from usersvc.adapters.postgres.outbox import EXPIRED_BATCH, PostgresOutbox, insert_events, limit_parameters
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.adapters.postgres.rows import VIEW, plain_uuid, view_of_row
from usersvc.adapters.postgres.schema import ADDING, upgrade
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserView
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

POOL_SIZE = 5
"""The number of connections of a process, without the one that listens for notifications."""

# PostgreSQL writes the JSON of a whole page, which is sent unchanged. Its functions for JSON objects add spaces.
_LINE = """
'{"id":"' || id || '","email":' || to_json(email) || ',"age":' || age || ',"registered_at":"'
    || to_char(registered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z') || '"}'
"""

# Writes to the WAL, so that the commit waits for the disk and for synchronous_standby_names. CockroachDB and YugabyteDB
# have no such function; a port to them has to rewrite a row.
_WRITE_TO_WAL = "pg_logical_emit_message(true, 'usersvc', ''::text)"

# The lock makes positions follow the order in which users become visible: it is taken before the position is drawn and
# held until the commit. So transactions that add users run one after the other; all others run concurrently. An
# addition is one statement and one transaction, so a client that hangs cannot hold the lock.
_LOCK = f"locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({ADDING}))"

# Constraints decide about keys and mailboxes, because the statement's snapshot is older than the lock. A key whose user
# is not added, since the mailbox is taken, violates the constraint key_of_a_user, and nothing is stored.
_KEY = f"""
expired_keys AS (
    DELETE FROM idempotency_keys WHERE digest IN (
        SELECT digest FROM idempotency_keys WHERE used_at <= $18 AND digest <> $17
        ORDER BY used_at LIMIT {EXPIRED_BATCH} FOR UPDATE SKIP LOCKED
    )
),
claimed AS (
    INSERT INTO idempotency_keys (digest, user_id, used_at) SELECT $17, $1, $6 FROM locked
    ON CONFLICT (digest) DO UPDATE SET user_id = excluded.user_id, used_at = excluded.used_at
    WHERE idempotency_keys.used_at <= $18
    RETURNING digest
)
"""  # noqa: S608  # a constant

_EVENTS = """
    SELECT event.* FROM added, unnest($7::uuid[], $8::text[], $9::timestamptz[])
        WITH ORDINALITY AS event (user_id, email, occurred_at, number)
"""

_EVENTS_OF_ALL = """
    SELECT event.user_id, event.email, event.occurred_at, event.number
    FROM added JOIN unnest($7::uuid[], $8::text[], $9::uuid[], $10::text[], $11::timestamptz[])
        WITH ORDINALITY AS event (owner_id, mailbox, user_id, email, occurred_at, number)
        ON added.id = event.owner_id AND added.mailbox = event.mailbox
"""

_ADD = f"""
added AS (
    INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
    SELECT nextval('users_position'), $1::uuid, $2::text, $3::text, $4::integer, $5::text, $6::timestamptz FROM allowed
    ON CONFLICT (mailbox) DO NOTHING
    RETURNING id
),
{insert_events(_EVENTS, context=10)}
SELECT pg_notify('{CHANNEL}', '') FROM added
"""  # noqa: S608  # a constant

# The first of several users with one mailbox or id is stored. The pairs of both are distinct.
_ADD_ALL = f"""
WITH {_LOCK},
added AS (
    INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
    SELECT nextval('users_position'), id, mailbox, email, age, password_hash, registered_at FROM (
        SELECT given.* FROM locked,
            unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::timestamptz[])
            WITH ORDINALITY AS given (id, mailbox, email, age, password_hash, registered_at, number)
        ORDER BY number
    ) AS ordered
    ON CONFLICT DO NOTHING
    RETURNING id, mailbox
),
{insert_events(_EVENTS_OF_ALL, context=12)}
SELECT id, mailbox, CASE WHEN EXISTS (SELECT FROM events) THEN pg_notify('{CHANNEL}', '') END FROM added
"""  # noqa: S608  # a constant

_ADD_WITHOUT_KEY = f"WITH {_LOCK}, allowed AS (SELECT FROM locked), {_ADD}"

_ADD_WITH_KEY = f"WITH {_LOCK}, {_KEY}, allowed AS (SELECT FROM claimed), {_ADD}"


class PostgresUsers:
    """A ``Users`` in a PostgreSQL database; an asynchronous context manager that opens and closes it.

    ``outbox`` and ``archive`` use the same database. Every method is one statement.
    """

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE) -> None:
        """Create the store, without a connection.

        Args:
            url: see ``PostgresPool``.
            pool_size: the maximum number of connections, without the one that listens for notifications.
        """
        self._pool = PostgresPool(url, pool_size)
        self.outbox = PostgresOutbox(self._pool)
        self.archive = PostgresArchive(self._pool)

    async def __aenter__(self) -> Self:
        """Connect, and migrate the schema.

        Raises:
            StorageUnavailable: the server cannot be reached or is unsuitable, or its schema is newer.
        """
        await upgrade(self._pool)
        await self._pool.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self._pool.close()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        context = request_context.get()
        values = [
            user.id,
            user.email.mailbox,
            user.email.typed,
            user.age.years,
            user.password_hash,
            user.registered_at,
            [event.user_id for event in user.events],
            [event.email for event in user.events],
            [event.occurred_at for event in user.events],
            context and context.request_id,
            context and context.trace_id,
            context and context.span_id,
            *limit_parameters(user.events),
        ]
        try:
            if key is None:
                added = await self._pool.run(_ADD_WITHOUT_KEY, *values)
            else:
                added = await self._pool.run(_ADD_WITH_KEY, *values, key.digest, user.registered_at - KEY_LIFETIME)
        except StorageUnavailable as error:
            violation = error.__cause__
            if isinstance(violation, asyncpg.ForeignKeyViolationError) and violation.constraint_name == "key_of_a_user":
                raise EmailAlreadyRegistered from None
            raise
        # This user may have been stored by a first attempt whose response was lost.
        if not added and not await self._pool.run(f"SELECT {_WRITE_TO_WAL} FROM users WHERE id = $1", user.id):  # noqa: S608  # a constant
            raise EmailAlreadyRegistered if key is None else IdempotencyKeyUsed

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        context = request_context.get()
        # A repeated pair of mailbox and id is never stored.
        distinct: dict[tuple[UUID, str], User] = {}
        for user in users:
            distinct.setdefault((user.id, user.email.mailbox), user)
        given = distinct.values()
        events = [(user, event) for user in given for event in user.events]
        rows = await self._pool.run_once(
            _ADD_ALL,
            [user.id for user in given],
            [user.email.mailbox for user in given],
            [user.email.typed for user in given],
            [user.age.years for user in given],
            [user.password_hash for user in given],
            [user.registered_at for user in given],
            [user.id for user, _ in events],
            [user.email.mailbox for user, _ in events],
            [event.user_id for _, event in events],
            [event.email for _, event in events],
            [event.occurred_at for _, event in events],
            context and context.request_id,
            context and context.trace_id,
            context and context.span_id,
            *limit_parameters([event for _, event in events]),
        )
        new = {(plain_uuid(row["id"]), row["mailbox"]) for row in rows}
        stored = []
        for user in users:
            pair = user.id, user.email.mailbox
            stored.append(pair in new)
            new.discard(pair)
        return stored

    async def remove(self, user_id: UUID) -> bool:
        # key_of_a_user deletes the keys. The outbox is scanned: it is usually small, and an index on user_id would slow
        # down each registration and each mail.
        removed = await self._pool.run_once(
            """
            WITH mails AS (DELETE FROM outbox WHERE user_id = $1)
            DELETE FROM users WHERE id = $1 RETURNING id
            """,
            user_id,
        )
        return bool(removed)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        # A user stored when a connection was lost may not have reached the standby yet; the write waits for it.
        rows = await self._pool.run(
            f"""
            SELECT {VIEW}, password_hash, {_WRITE_TO_WAL} FROM users
            WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = $1 AND used_at > $2)
            """,  # noqa: S608  # a constant
            key.digest,
            at - KEY_LIFETIME,
        )
        return EarlierRegistration(view_of_row(rows[0]), PasswordHash(rows[0]["password_hash"])) if rows else None

    async def find(self, user_id: UUID) -> UserView | None:
        rows = await self._pool.run(f"SELECT {VIEW} FROM users WHERE id = $1", user_id)  # noqa: S608  # a constant
        return view_of_row(rows[0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        values: list[int | str] = [limit + 1]
        conditions = []
        if after is not None:
            values.append(after)
            conditions.append(f"position {'>' if order is Order.ASC else '<'} ${len(values)}")
        if mailbox is not None:
            values.append(mailbox)
            conditions.append(f"mailbox = ${len(values)}")
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        last = "max" if order is Order.ASC else "min"
        # One row more than requested shows whether there is a next page.
        [(lines, count, last_position)] = await self._pool.run(
            f"""
            SELECT
                convert_to(string_agg({_LINE}, chr(10) ORDER BY position {order}), 'UTF8'), count(*), {last}(position)
            FROM (SELECT {VIEW}, position FROM users {where} ORDER BY position {order} LIMIT $1) AS shown
            """,  # noqa: S608  # constants
            *values,
        )
        if count <= limit:
            return Page(lines=lines or b"", next_after=None)
        # The next page begins with the extra row, so right after the position before it.
        return Page(
            lines=lines.rpartition(b"\n")[0], next_after=last_position - 1 if order is Order.ASC else last_position + 1
        )

    async def check(self) -> None:
        """Read a row and write to the WAL, which fails on a standby and on a full disk."""
        await self._pool.run(f"SELECT {_WRITE_TO_WAL}, (SELECT position FROM users LIMIT 1)")  # noqa: S608  # a constant
