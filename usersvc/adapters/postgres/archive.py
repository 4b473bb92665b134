"""The export of the users in PostgreSQL."""

from collections.abc import Sequence
from uuid import UUID

from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.adapters.postgres.rows import RECORD, record_of
from usersvc.application.read_models import UserRecord


class PostgresArchive:
    """An ``Archive`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        rows = await self._pool.run(
            f"SELECT {RECORD} FROM users WHERE position > $1 ORDER BY position LIMIT $2",  # noqa: S608  # a constant
            0 if after is None else after,
            limit,
        )
        return [record_of(row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        rows = await self._pool.run(
            f"SELECT {RECORD} FROM users WHERE mailbox = ANY ($1) OR id = ANY ($2) ORDER BY position",  # noqa: S608  # a constant
            list(mailboxes),
            list(ids),
        )
        return [record_of(row) for row in rows]

    async def count(self) -> int:
        [[count]] = await self._pool.run("SELECT count(*) FROM users")
        return int(count)
