"""The export of the users in PostgreSQL."""

from collections.abc import Sequence
from uuid import UUID

from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.application.read_models import UserRecord

_SELECT = "SELECT position, id, email, mailbox, age, password_hash, registered_at FROM users"


class PostgresArchive:
    """An ``Archive`` in the database of a ``PostgresUsers``."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        rows = await self._pool.run(f"{_SELECT} WHERE position > $1 ORDER BY position LIMIT $2", after or 0, limit)
        return [UserRecord(*row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        matching = "WHERE mailbox = ANY ($1) OR id = ANY ($2) ORDER BY position"
        return [UserRecord(*row) for row in await self._pool.run(f"{_SELECT} {matching}", mailboxes, ids)]

    async def count(self) -> int:
        [[count]] = await self._pool.run("SELECT count(*) FROM users")
        return int(count)
