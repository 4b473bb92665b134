"""The columns of users and outbox entries, and what a row becomes."""

from datetime import datetime
from typing import Any
from uuid import UUID

from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.read_models import UserRecord, UserView
from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import PasswordHash

VIEW = "id, email, age, registered_at"
RECORD = "position, id, email, mailbox, age, password_hash, registered_at"
ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"


def view_of_row(row: tuple[Any, ...]) -> UserView:
    """The view, from the columns of ``VIEW``."""
    return {"id": row[0], "email": row[1], "age": row[2], "registered_at": row[3]}


def record_of(row: tuple[Any, ...]) -> UserRecord:
    """The record, from the columns of ``RECORD``."""
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


def entry_of(row: tuple[Any, ...]) -> OutboxEntry:
    """The outbox entry, from the columns of ``ENTRY``."""
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
