"""How many mails one mailbox and one domain get, whichever addresses name them.

Each limit is a generic cell rate algorithm (ITU-T I.371, the virtual scheduling form): a mail reserves the next free
time when it is stored. So a mail above the limit waits for its turn, and no mail is looked at twice.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from usersvc.domain.email_address import EmailAddress
from usersvc.domain.events import UserRegistered


@dataclass(frozen=True, slots=True)
class MailLimit:
    """At most ``burst`` mails at once, and one more whenever ``gap`` has passed."""

    burst: int
    gap: timedelta


MAILBOX = MailLimit(burst=5, gap=timedelta(days=1) / 5)
"""Of one kind of mail: never more than ten in any 24 hours."""
DOMAIN = MailLimit(burst=1200, gap=timedelta(seconds=3))
"""1,200 an hour in the long run: what Exchange Online takes from one sender for one mailbox."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What the mails under one limit have reserved; without effect from ``until`` on."""

    since: datetime
    until: datetime
    """``since`` and a gap for each mail since then."""


def limits(event: UserRegistered) -> dict[str, MailLimit]:
    """The limits on the mail about an event, by a digest of the mailbox without its tag, and one of the domain.

    Dots count as nothing, since Gmail ignores them; two people who share a limit for that reason may wait a little.
    """
    local, _, domain = EmailAddress(event.email).mailbox.rpartition("@")
    untagged = (local.partition("+")[0] or local).replace(".", "")
    return {_digest(f"{type(event).__name__} {untagged}@{domain}"): MAILBOX, _digest(f"@{domain}"): DOMAIN}


def reserve(event: UserRegistered, reserved: Mapping[str, Reserved]) -> tuple[datetime, dict[str, Reserved]]:
    """Reserve the time of a mail.

    Args:
        event: what the mail is about.
        reserved: what was reserved before, by digest; without a digest where nothing was.

    Returns:
        When the mail is due, and what is reserved from now on under each of its limits.
    """
    now = due_at = event.occurred_at
    after: dict[str, Reserved] = {}
    for digest, limit in limits(event).items():
        before = reserved.get(digest)
        if before is None or before.until <= now:
            before = Reserved(now, now)
        # Only a clock that was wrong has reserved from the future on; nobody waits for that.
        ahead = max(before.since - now, timedelta(0))
        after[digest] = Reserved(before.since - ahead, before.until - ahead + limit.gap)
        due_at = max(due_at, after[digest].until - limit.burst * limit.gap)
    return due_at, after


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
