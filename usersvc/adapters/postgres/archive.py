"""Users in the PostgreSQL database as they are stored, for the import and export of users."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.read_models import UserRecord
from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash

ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"
"""The columns that ``entry_of`` takes."""

_RECORD = "position, id, email, mailbox, age, password_hash, registered_at"


class PostgresArchive:
    """An ``Archive`` in the database of a ``PostgresUsers``."""

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

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.find_matching``."""
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
        context=None if request_id is None else RequestContext(request_id, trace_id, span_id),
    )


def _record(row: asyncpg.Record) -> UserRecord:
    return UserRecord(**{**row, "id": uuid_of(row["id"]), "password_hash": PasswordHash(row["password_hash"])})
