"""Users and their outbox in PostgreSQL: for more than one host."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres.archive import ENTRY, PostgresArchive, entry_of, uuid_of
from usersvc.adapters.postgres.pool import CHANNEL, PostgresPool, listening
from usersvc.adapters.postgres.schema import ADDING, upgrade
from usersvc.application.clock import timestamp
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.read_models import Order, Page, UserView
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import limits
from usersvc.domain.user import PasswordHash, User

POOL_SIZE = 5
"""How many connections a process has, beside the one that it listens on."""

FORGOTTEN_AT_ONCE = 100
"""How many ended keys, and limits, one registration deletes; more than it adds, and few enough to cost nothing."""

_UNLIMITED = "(attempts > 0 OR reason IS NULL)"
"""An entry that no limit on mails puts off; an index has the same words."""
_VIEW = "id, email, age, registered_at"
# PostgreSQL writes the JSON of a whole page, which is sent as it is. Its own functions for objects add spaces.
_LINE = """
'{"id":"' || id || '","email":' || to_json(email) || ',"age":' || age || ',"registered_at":"'
    || to_char(registered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z') || '"}'
"""
# Something in the log, so that the end of a statement waits for the disk, and for those in synchronous_standby_names.
# CockroachDB and YugabyteDB have no such log; there, a row has to be written as it was.
_WRITTEN = "pg_logical_emit_message(true, 'usersvc', ''::text)"

# One statement, and so one transaction and one way to the server and back, with no moment in which a client that hangs
# could hold the lock. It is that lock, held until the transaction is over and taken before the position is drawn, that
# makes positions follow the order in which users become visible: those of a sequence alone, drawn by transactions that
# go on side by side, would not. So transactions that add are stored one after the other, as fast as the server's disk
# can sync; all others go on beside them. CockroachDB and YugabyteDB: see ADDING. A counter in a row that each addition
# updates gives the same order there.
_TURN = f"turn AS MATERIALIZED (SELECT pg_advisory_xact_lock({ADDING}))"
# Both keys and mailboxes are settled by constraints, whatever this statement's snapshot has missed while it waited. A
# key whose user is not added, since the mailbox is taken, breaks the constraint key_of_a_user, and nothing is stored.
_KEY = f"""
forgotten AS (
    DELETE FROM idempotency_keys WHERE digest IN (
        SELECT digest FROM idempotency_keys WHERE used_at <= $18 AND digest <> $17
        ORDER BY used_at LIMIT {FORGOTTEN_AT_ONCE} FOR UPDATE SKIP LOCKED
    )
),
named AS (
    INSERT INTO idempotency_keys (digest, user_id, used_at) SELECT $17, $1, $6 FROM turn
    ON CONFLICT (digest) DO UPDATE SET user_id = excluded.user_id, used_at = excluded.used_at
    WHERE idempotency_keys.used_at <= $18
    RETURNING digest
)
"""  # noqa: S608  # a constant


def _put(told: str, context: int) -> str:
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


def _limits(events: Sequence[UserRegistered]) -> list[list[object]]:
    """The last four parameters of ``_put``."""
    rows = [
        (number, digest, limit.gap, limit.burst * limit.gap)
        for number, event in enumerate(events, start=1)
        for digest, limit in limits(event).items()
    ]
    return [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]


_TOLD = """
    SELECT event.* FROM added, unnest($7::uuid[], $8::text[], $9::timestamptz[])
        WITH ORDINALITY AS event (user_id, email, occurred_at, number)
"""
_TOLD_OF_ALL = """
    SELECT event.user_id, event.email, event.occurred_at, event.number
    FROM added JOIN unnest($7::uuid[], $8::text[], $9::uuid[], $10::text[], $11::timestamptz[])
        WITH ORDINALITY AS event (holder, mailbox, user_id, email, occurred_at, number)
        ON added.id = event.holder AND added.mailbox = event.mailbox
"""
_ADD = f"""
added AS (
    INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
    SELECT nextval('users_position'), $1::uuid, $2::text, $3::text, $4::integer, $5::text, $6::timestamptz FROM allowed
    ON CONFLICT (mailbox) DO NOTHING
    RETURNING id
),
{_put(_TOLD, context=10)}
SELECT pg_notify('{CHANNEL}', '') FROM added
"""  # noqa: S608  # a constant
# Who comes first in the batch is first in line for the mailbox and the id. Pairs of both are different ones here.
_ADD_ALL = f"""
WITH {_TURN},
added AS (
    INSERT INTO users (position, id, mailbox, email, age, password_hash, registered_at)
    SELECT nextval('users_position'), id, mailbox, email, age, password_hash, registered_at FROM (
        SELECT given.* FROM turn,
            unnest($1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[], $6::timestamptz[])
            WITH ORDINALITY AS given (id, mailbox, email, age, password_hash, registered_at, number)
        ORDER BY number
    ) AS ordered
    ON CONFLICT DO NOTHING
    RETURNING id, mailbox
),
{_put(_TOLD_OF_ALL, context=12)}
SELECT id, mailbox, CASE WHEN EXISTS (SELECT FROM told) THEN pg_notify('{CHANNEL}', '') END FROM added
"""  # noqa: S608  # a constant
_ADD_WITHOUT_KEY = f"WITH {_TURN}, allowed AS (SELECT FROM turn), {_ADD}"
_ADD_WITH_KEY = f"WITH {_TURN}, {_KEY}, allowed AS (SELECT FROM named), {_ADD}"


class PostgresUsers:
    """A ``Users`` in a PostgreSQL database; an asynchronous context manager that opens and closes it.

    ``outbox`` and ``archive`` are the same database. Every method is one statement.
    """

    def __init__(self, url: str, *, pool_size: int = POOL_SIZE) -> None:
        """Make it, without a connection.

        Args:
            url: see ``PostgresPool``.
            pool_size: how many connections there are at most, beside one for whoever listens.
        """
        self._pool = PostgresPool(url, pool_size)
        self.outbox = PostgresOutbox(self._pool)
        self.archive = PostgresArchive(self._pool)

    async def __aenter__(self) -> Self:
        """Connect, and bring the schema up to date.

        Raises:
            StorageUnavailable: the server cannot be reached, or is not fit; or the schema is of a newer version.
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
        """See ``Users.add``."""
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
            *_limits(user.events),
        ]
        try:
            if key is None:
                added = await self._pool.run(_ADD_WITHOUT_KEY, *values)
            else:
                added = await self._pool.run(_ADD_WITH_KEY, *values, key.digest, user.registered_at - KEY_LIFETIME)
        except StorageUnavailable as error:
            broken = error.__cause__
            if isinstance(broken, asyncpg.ForeignKeyViolationError) and broken.constraint_name == "key_of_a_user":
                raise EmailAlreadyRegistered from None
            raise
        # It may have been this user who took the mailbox and the key, by a first attempt whose answer was lost.
        if not added and not await self._pool.run(f"SELECT {_WRITTEN} FROM users WHERE id = $1", user.id):  # noqa: S608  # a constant
            raise EmailAlreadyRegistered if key is None else IdempotencyKeyUsed

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """See ``Users.add_all``."""
        context = request_context.get()
        # A second one with the same mailbox and the same id is refused in any case.
        different: dict[tuple[UUID, str], User] = {}
        for user in users:
            different.setdefault((user.id, user.email.mailbox), user)
        given = different.values()
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
            *_limits([event for _, event in events]),
        )
        new = {(uuid_of(row["id"]), row["mailbox"]) for row in rows}
        stored = []
        for user in users:
            who = user.id, user.email.mailbox
            stored.append(who in new)
            new.discard(who)
        return stored

    async def remove(self, user_id: UUID) -> bool:
        """See ``Users.remove``."""
        # Its keys go with it: see key_of_a_user. The outbox is gone through whole: it is small, unless mails cannot be
        # delivered, and an index would be one more to be kept by each registration and each mail.
        gone = await self._pool.run_once(
            """
            WITH told AS (DELETE FROM outbox WHERE user_id = $1)
            DELETE FROM users WHERE id = $1 RETURNING id
            """,
            user_id,
        )
        return bool(gone)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """See ``Users.registered_with``."""
        # Who was stored when a connection was lost may be on this server alone, until something behind it is elsewhere.
        rows = await self._pool.run(
            f"""
            SELECT {_VIEW}, password_hash, {_WRITTEN} FROM users
            WHERE id = (SELECT user_id FROM idempotency_keys WHERE digest = $1 AND used_at > $2)
            """,  # noqa: S608  # a constant
            key.digest,
            at - KEY_LIFETIME,
        )
        return EarlierRegistration(_view(rows[0]), PasswordHash(rows[0]["password_hash"])) if rows else None

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        rows = await self._pool.run(f"SELECT {_VIEW} FROM users WHERE id = $1", user_id)  # noqa: S608  # a constant
        return _view(rows[0]) if rows else None

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
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
        # One more than asked for tells whether there is a next page.
        [(lines, how_many, furthest)] = await self._pool.run(
            f"""
            SELECT
                convert_to(string_agg({_LINE}, chr(10) ORDER BY position {order}), 'UTF8'), count(*), {last}(position)
            FROM (SELECT {_VIEW}, position FROM users {where} ORDER BY position {order} LIMIT $1) AS shown
            """,  # noqa: S608  # constants
            *values,
        )
        if how_many <= limit:
            return Page(lines=lines or b"", next_after=None)
        # Behind the place just before the one too many, which nobody has or will have.
        return Page(lines=lines.rpartition(b"\n")[0], next_after=furthest - 1 if order is Order.ASC else furthest + 1)

    async def check(self) -> None:
        """See ``Users.check``: a page is read, and something is written to the log, which takes a primary with room."""
        await self._pool.run(f"SELECT {_WRITTEN}, (SELECT position FROM users LIMIT 1)")  # noqa: S608  # a constant


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
        """See ``Outbox.lease``."""
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
        """See ``Outbox.delivered``."""
        await self._answer("DELETE FROM outbox", entry)

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """See ``Outbox.reschedule``."""
        await self._answer("UPDATE outbox SET due_at = $3, reason = $4, lease = NULL", entry, due_at, reason)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        """See ``Outbox.dead_letter``."""
        await self._answer("UPDATE outbox SET due_at = NULL, reason = $3, lease = NULL", entry, reason)

    async def next_due(self) -> datetime | None:
        """See ``Outbox.next_due``."""
        [[due_at]] = await self._pool.run("SELECT min(due_at) FROM outbox WHERE due_at IS NOT NULL")
        found: datetime | None = due_at
        return found

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """See ``Outbox.entries``."""
        rows = await self._pool.run(
            f"SELECT {ENTRY} FROM outbox WHERE id > $1 ORDER BY id LIMIT $2",  # noqa: S608  # a constant
            after or 0,
            limit,
        )
        return [entry_of(row) for row in rows]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """See ``Outbox.retry``."""
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
        """See ``Outbox.state``."""
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


def _view(row: asyncpg.Record) -> UserView:
    return {
        "id": str(row["id"]),
        "email": row["email"],
        "age": row["age"],
        "registered_at": timestamp(row["registered_at"]),
    }
