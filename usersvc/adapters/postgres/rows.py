"""The columns of users and outbox entries, and what a row becomes."""

from uuid import UUID

import asyncpg

from usersvc.application.clock import timestamp
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.read_models import UserRecord, UserView
from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import PasswordHash

VIEW = "id, email, age, registered_at"
RECORD = "position, id, email, mailbox, age, password_hash, registered_at"
ENTRY = "id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id"


def plain_uuid(value: UUID) -> UUID:
    """A ``UUID`` of the standard type instead of asyncpg's subclass."""
    return UUID(int=value.int)


def view_of_row(row: asyncpg.Record) -> UserView:
    """The view, from the columns of ``VIEW``."""
    return {
        "id": str(row["id"]),
        "email": row["email"],
        "age": row["age"],
        "registered_at": timestamp(row["registered_at"]),
    }


def record_of(row: asyncpg.Record) -> UserRecord:
    """The record, from the columns of ``RECORD``."""
    return UserRecord(**{**row, "id": plain_uuid(row["id"]), "password_hash": PasswordHash(row["password_hash"])})


def entry_of(row: asyncpg.Record) -> OutboxEntry:
    """The outbox entry, from the columns of ``ENTRY``."""
    entry_id, user_id, email, occurred_at, attempts, due_at, reason, lease, request_id, trace_id, span_id = row
    return OutboxEntry(
        id=entry_id,
        event=UserRegistered(plain_uuid(user_id), email, occurred_at),
        attempts=attempts,
        due_at=due_at,
        reason=reason,
        lease=None if lease is None else str(lease),
        context=None if request_id is None else RequestContext(request_id, trace_id, span_id),
    )
