"""What has happened, told in the past tense."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class UserRegistered:
    """A person has become a user.

    ``email`` is the spelling that the person typed; ``occurred_at`` is in UTC.
    """

    user_id: UUID
    email: str
    occurred_at: datetime
