"""Entries of the outbox."""

from dataclasses import dataclass
from datetime import UTC, datetime

from usersvc.application.request_context import RequestContext
from usersvc.domain.events import UserRegistered


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event whose mail is not delivered yet."""

    id: int
    event: UserRegistered
    attempts: int
    """The number of attempts, including the current one."""
    due_at: datetime | None
    """The time of the next attempt, in UTC; None if the entry is dead-lettered."""
    reason: str | None
    """Why the last attempt failed; before the first one, ``RATE_LIMITED`` or None."""
    lease: str | None = None
    """Identifies the lease; results are reported with it."""
    context: RequestContext | None = None
    """The request that led to the event."""

    @property
    def is_rate_limited(self) -> bool:
        """Whether a mail limit delays the first attempt."""
        return self.attempts == 0 and self.reason is not None


@dataclass(frozen=True, slots=True)
class OutboxState:
    """Metrics of an outbox; None for a count that takes too long."""

    pending: int | None
    """Entries that are not dead-lettered, including leased ones."""
    dead_lettered: int | None
    oldest: datetime | None
    """The time of the oldest pending event, except those delayed by a mail limit, in UTC; None without any."""


RATE_LIMITED = "waits, since many mails went to this mailbox or domain"
"""The reason of an entry that is delayed by a mail limit (``usersvc.domain.mail_limits``)."""

LAST = datetime.max.replace(tzinfo=UTC)
"""No time is later."""
