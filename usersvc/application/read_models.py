"""What is read of users: for display, and for export."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TypedDict
from uuid import UUID

from usersvc.application.clock import timestamp
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User


class UserView(TypedDict):
    """What anybody may see of a user: a read model, ready to be written as JSON, never with the password."""

    id: str
    email: str
    age: int
    registered_at: str


def view_of(user: User) -> UserView:
    """The public side of a user."""
    return {
        "id": str(user.id),
        "email": user.email.typed,
        "age": user.age.years,
        "registered_at": timestamp(user.registered_at),
    }


class Order(StrEnum):
    """By the time of registration: the oldest first, or the newest."""

    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True, slots=True)
class Page:
    """Some users in order, and the position after which the next page begins (None: this was the last).

    The store itself writes the JSON, once, in the form that is sent: a list has no need for objects in between.
    """

    lines: bytes
    """A ``UserView`` as a JSON object for each of them, in UTF-8, with a newline between two."""
    next_after: int | None

    def __bool__(self) -> bool:
        """Whether there are users on it."""
        return bool(self.lines)

    @property
    def users(self) -> list[UserView]:
        """The same as objects."""
        return [json.loads(line) for line in self.lines.splitlines()]


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user as stored, the hash included: for moving users elsewhere, never for showing."""

    position: int
    id: UUID
    email: str
    """As typed."""
    mailbox: str
    age: int
    password_hash: PasswordHash = field(repr=False)
    registered_at: datetime
    """In UTC."""
