"""The export of the users in the SQLite file."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.application.read_models import UserRecord
from usersvc.domain.password import PasswordHash

_RECORD = "position, id, email, mailbox, age, password_hash, registered_at"


class SqliteArchive:
    """An ``Archive`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        rows = await self._file.read(
            f"SELECT {_RECORD} FROM users WHERE position > ? ORDER BY position LIMIT ?",  # noqa: S608  # a constant
            [after or 0, limit],
        )
        return [_record(row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        rows = await self._file.read(
            f"""
            SELECT {_RECORD} FROM users
            WHERE mailbox IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))
            ORDER BY position
            """,  # noqa: S608  # a constant
            [json.dumps([*mailboxes]), json.dumps([str(user_id) for user_id in ids])],
        )
        return [_record(row) for row in rows]


def _record(row: tuple[Any, ...]) -> UserRecord:
    position, user_id, email, mailbox, age, password_hash, registered_at = row
    return UserRecord(
        position, UUID(user_id), email, mailbox, age, PasswordHash(password_hash), datetime.fromisoformat(registered_at)
    )
