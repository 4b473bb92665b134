"""Events: what has happened to a user, named in the past tense."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class UserRegistered:
    """A user has registered; ``email`` is the address as typed, ``occurred_at`` is in UTC."""

    user_id: UUID
    email: str
    occurred_at: datetime
