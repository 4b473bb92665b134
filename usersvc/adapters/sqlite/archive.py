"""The export of the users in the SQLite file."""

import json
from collections.abc import Sequence
from uuid import UUID

from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.adapters.sqlite.rows import RECORD, record_of
from usersvc.application.read_models import UserRecord


class SqliteArchive:
    """An ``Archive`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        rows = await self._file.read(
            f"SELECT {RECORD} FROM users WHERE position > ? ORDER BY position LIMIT ?",  # noqa: S608  # a constant
            [0 if after is None else after, limit],
        )
        return [record_of(row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        rows = await self._file.read(
            f"""
            SELECT {RECORD} FROM users
            WHERE mailbox IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))
            ORDER BY position
            """,  # noqa: S608  # a constant
            [json.dumps([*mailboxes]), json.dumps([str(user_id) for user_id in ids])],
        )
        return [record_of(row) for row in rows]

    async def count(self) -> int:
        [[count]] = await self._file.read("SELECT count(*) FROM users")
        return int(count)
