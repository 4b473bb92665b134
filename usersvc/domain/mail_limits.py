"""Limits on the rate of mails to one mailbox and to one domain: a mail above a limit is sent later, never dropped.

Each is a generic cell rate algorithm (ITU-T I.371, virtual scheduling): a stored event reserves the next free time.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from usersvc.domain.email_address import EmailAddress
from usersvc.domain.events import UserRegistered


@dataclass(frozen=True, slots=True)
class MailLimit:
    """At most ``burst`` mails at once, and one more per ``gap``."""

    burst: int
    gap: timedelta


MAILBOX = MailLimit(burst=5, gap=timedelta(days=1) / 5)
"""For each kind of mail; at most ten in any 24 hours."""
DOMAIN = MailLimit(burst=1200, gap=timedelta(seconds=3))
"""1,200 per hour on average, the limit of Exchange Online per sender and mailbox."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """The time that the mails under one limit have reserved; without effect from ``until`` on."""

    since: datetime
    until: datetime
    """``since`` plus one gap per mail."""


def limits(event: UserRegistered) -> dict[str, MailLimit]:
    """The limits on the mail about an event, by digests of the mailbox and of the domain.

    Tags (``+tag``) and dots in the local part are ignored, as Gmail does; elsewhere that only delays some mails.
    """
    local, _, domain = EmailAddress(event.email).mailbox.rpartition("@")
    untagged = (local.partition("+")[0] or local).replace(".", "")
    return {_digest(f"{type(event).__name__} {untagged}@{domain}"): MAILBOX, _digest(f"@{domain}"): DOMAIN}


def reserve(event: UserRegistered, reserved: Mapping[str, Reserved]) -> tuple[datetime, dict[str, Reserved]]:
    """When the mail about an event is due, and the new reservations, given the earlier ones by digest."""
    now = due_at = event.occurred_at
    after: dict[str, Reserved] = {}
    for digest, limit in limits(event).items():
        before = reserved.get(digest)
        if before is None or before.until <= now:
            before = Reserved(now, now)
        # A reservation that starts in the future comes from a wrong clock: shift it back to now.
        ahead = max(before.since - now, timedelta(0))
        after[digest] = Reserved(before.since - ahead, before.until - ahead + limit.gap)
        due_at = max(due_at, after[digest].until - limit.burst * limit.gap)
    return due_at, after


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
