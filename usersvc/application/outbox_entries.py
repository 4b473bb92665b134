"""Entries of the outbox."""

from dataclasses import dataclass
from datetime import UTC, datetime

from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event that somebody is still to be told of."""

    id: int
    event: UserRegistered
    attempts: int
    """How often it has been tried, this time included."""
    due_at: datetime | None
    """When it is to be tried next, in UTC; None when it has been dead-lettered."""
    reason: str | None
    """Why the last attempt failed; before the first one, ``RATE_LIMITED`` or None."""
    lease: str | None = None
    """Names who holds it, for the answers below."""
    context: RequestContext | None = None
    """What led to the event."""

    @property
    def is_rate_limited(self) -> bool:
        """Whether it was put off when it was stored, and has not been tried yet."""
        return self.attempts == 0 and self.reason is not None


@dataclass(frozen=True, slots=True)
class OutboxState:
    """What is in an outbox, in figures; None for a count that takes too long."""

    pending: int | None
    """Entries that are to be tried, also later or just now."""
    dead_lettered: int | None
    oldest: datetime | None
    """When what the longest pending entry tells of has happened, in UTC, but for those that wait because of a limit;
    None when there is none."""


RATE_LIMITED = "waits, since many mails went to this mailbox or domain"
"""The reason of an entry that was put off when it was stored (``usersvc.domain.mail_limits``)."""


LAST = datetime.max.replace(tzinfo=UTC)
"""No time is later."""
