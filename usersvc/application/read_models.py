"""What is read of users: for display, and for export."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self, TypedDict
from uuid import UUID

from usersvc.application.clock import timestamp
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User


class UserView(TypedDict):
    """A user as displayed, ready to be written as JSON."""

    id: str
    email: str
    age: int
    registered_at: str


def view_of(user: User) -> UserView:
    """The public side of a user."""
    return UserRecord.of(user).view


class Order(StrEnum):
    """By the time of registration: the oldest first, or the newest."""

    ASC = "asc"
    DESC = "desc"


@dataclass(frozen=True, slots=True)
class Page:
    """Some users in order. The store writes their JSON as it is sent, without objects in between."""

    lines: bytes
    """One ``UserView`` per line as a JSON object in UTF-8; the last line has no newline."""
    next_after: int | None
    """The position after which the next page begins; None: this was the last."""

    def __bool__(self) -> bool:
        return bool(self.lines)

    @property
    def users(self) -> list[UserView]:
        """The users as objects."""
        return [json.loads(line) for line in self.lines.splitlines()]


@dataclass(frozen=True, slots=True)
class UserRecord:
    """A user as stored, including the hash: for export and import, never for display."""

    position: int
    id: UUID
    email: str
    """As typed."""
    mailbox: str
    age: int
    password_hash: PasswordHash = field(repr=False)
    registered_at: datetime
    """In UTC."""

    @classmethod
    def of(cls, user: User, *, position: int = 0) -> Self:
        """The record of a user that is stored at this position."""
        email, age = user.email, user.age.years
        return cls(position, user.id, email.typed, email.mailbox, age, user.password_hash, user.registered_at)

    @property
    def view(self) -> UserView:
        """The public side."""
        return {
            "id": str(self.id),
            "email": self.email,
            "age": self.age,
            "registered_at": timestamp(self.registered_at),
        }
