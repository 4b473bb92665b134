"""Users in PostgreSQL: for more than one host."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Self
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres.outbox import EXPIRED_BATCH, INSERT_EVENTS, PostgresOutbox, columns, event_parameters
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.adapters.postgres.schema import ADDING, upgrade
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

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

# The lock makes positions follow the order in which users become visible: it is taken before the position is drawn and
# held until the commit. So transactions that add users run one after the other; all others run concurrently. An
# addition is one statement and one transaction, so a client that hangs cannot hold the lock.
_LOCK = f"locked AS MATERIALIZED (SELECT pg_advisory_xact_lock({ADDING}))"

# Constraints decide about keys and mailboxes, because the statement's snapshot is older than the lock. A key whose user
# is not added, since the mailbox is taken, violates the constraint key_of_a_user, and nothing is stored.
_CLAIM_KEY = f"""
expired_keys AS (
    DELETE FROM idempotency_keys WHERE digest IN (
        SELECT digest FROM idempotency_keys WHERE used_at <= $19 AND digest <> $18
        ORDER BY used_at LIMIT {EXPIRED_BATCH} FOR UPDATE SKIP LOCKED
    )
),
claimed AS (
    INSERT INTO idempotency_keys (digest, user_id, used_at)
    SELECT $18, ($12::uuid[])[1], ($17::timestamptz[])[1] FROM locked
    ON CONFLICT (digest) DO UPDATE SET user_id = excluded.user_id, used_at = excluded.used_at
    WHERE idempotency_keys.used_at <= $19
    RETURNING digest
)
"""  # noqa: S608  # a constant


def _insert(allowed: str, conflict: str) -> str:
    """The CTEs that insert users in their order if the CTE ``allowed`` has a row; returns the rows of those added."""
    return f"""
    stored (user_id, mailbox) AS (
        INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
        SELECT nextval('users_position'), id, mailbox, email, age, password_hash, registered_at FROM (
            SELECT given.* FROM {allowed},
                unnest($12::uuid[], $13::text[], $14::text[], $15::integer[], $16::text[], $17::timestamptz[])
                WITH ORDINALITY AS given (id, mailbox, email, age, password_hash, registered_at, number)
            ORDER BY number
        ) AS ordered
        ON CONFLICT {conflict} DO NOTHING
        RETURNING id, mailbox
    ),
    {INSERT_EVENTS}
    SELECT user_id, mailbox FROM stored
    """  # noqa: S608  # constants


_ADD = f"WITH {_LOCK}, {_insert('locked', '(mailbox)')}"
_ADD_WITH_KEY = f"WITH {_LOCK}, {_CLAIM_KEY}, {_insert('claimed', '(mailbox)')}"
# The first of several users with one mailbox or id is stored.
_ADD_ALL = f"WITH {_LOCK}, {_insert('locked', '')}"


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
        statement, values = _ADD, _parameters([user])
        if key is not None:
            statement, values = _ADD_WITH_KEY, [*values, key.digest, user.registered_at - KEY_LIFETIME]
        try:
            added = await self._pool.run(statement, *values)
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


def _parameters(users: Sequence[User]) -> list[object]:
    """The parameters of ``INSERT_EVENTS``, and $12 to $17: those of ``_insert``."""
    rows = [
        (user.id, user.email.mailbox, user.email.typed, user.age.years, user.password_hash, user.registered_at)
        for user in users
    ]
    return [*event_parameters(users), *columns(rows, 6)]
