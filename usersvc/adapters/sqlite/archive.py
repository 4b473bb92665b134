"""Users in the SQLite file as they are stored, for the import and export of users."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from usersvc.adapters.sqlite.database import DatabaseFile
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.read_models import UserRecord
from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash

ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"
"""The columns that ``entry_of`` takes."""

_RECORD = "position, id, email, mailbox, age, password_hash, registered_at"


class SqliteArchive:
    """An ``Archive`` in the file of a ``SqliteUsers``."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """See ``Archive.users``."""
        rows = await self._file.read(
            f"SELECT {_RECORD} FROM users WHERE position > ? ORDER BY position LIMIT ?",  # noqa: S608  # a constant
            [0 if after is None else after, limit],
        )
        return [_record(row) for row in rows]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.find_matching``."""
        rows = await self._file.read(
            f"""
            SELECT {_RECORD} FROM users
            WHERE mailbox IN (SELECT value FROM json_each(?)) OR id IN (SELECT value FROM json_each(?))
            ORDER BY position
            """,  # noqa: S608  # a constant
            [json.dumps([*mailboxes]), json.dumps([str(user_id) for user_id in ids])],
        )
        return [_record(row) for row in rows]

    async def count(self) -> int:
        """See ``Archive.count``."""
        [[count]] = await self._file.read("SELECT count(*) FROM users")
        return int(count)


def entry_of(row: tuple[Any, ...]) -> OutboxEntry:
    """An entry, from what is in ``ENTRY``."""
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id = row
    return OutboxEntry(
        id=entry_id,
        event=UserRegistered(UUID(user_id), email, datetime.fromisoformat(occurred_at)),
        attempts=attempts,
        due_at=None if due_at is None else datetime.fromisoformat(due_at),
        reason=reason,
        lease=lease,
        context=None if request_id is None else RequestContext(request_id, trace_id, span_id),
    )


def _record(row: tuple[Any, ...]) -> UserRecord:
    position, user_id, email, mailbox, age, password_hash, registered_at = row
    return UserRecord(
        position=position,
        id=UUID(user_id),
        email=email,
        mailbox=mailbox,
        age=age,
        password_hash=PasswordHash(password_hash),
        registered_at=datetime.fromisoformat(registered_at),
    )
