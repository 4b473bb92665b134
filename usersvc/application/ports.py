"""What the use cases need from outside, in the language of the domain, and what can go wrong there."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypedDict
from uuid import UUID

from usersvc.domain.errors import DomainError
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import Password, PasswordHash, User


class StorageUnavailable(DomainError):
    """The store cannot answer just now: locked for too long, full, unreachable. The message is for the log."""


class UserView(TypedDict):
    """What anybody may see of a user: a read model, ready to be written as JSON, never with the password."""

    id: str
    email: str
    age: int
    registered_at: str


def timestamp(at: datetime) -> str:
    """A UTC time as RFC 3339 with microseconds and a ``Z``: of fixed width, so that text sorts as time does."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


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
    """Some users in order, and the position after which the next page begins (None: this was the last)."""

    users: list[UserView]
    next_after: int | None


class Users(Protocol):
    """The registered users, as a collection that outlives the process.

    Each user has a position: a number that the collection gives out in the order in which users become visible.
    Paging by it (a keyset page) can neither repeat nor skip anybody, whoever comes or goes meanwhile. A time of
    registration could: two users may be stored in the other order than their clocks were read.
    """

    async def add(self, user: User) -> None:
        """Store a new user; when this returns, the user is durable.

        Raises:
            EmailAlreadyRegistered: the mailbox belongs to somebody already.
            StorageUnavailable: it is not known whether the user was stored.
        """
        ...

    async def find(self, user_id: UUID) -> UserView | None:
        """The user with this id, if there is one.

        Raises:
            StorageUnavailable: the store cannot answer.
        """
        ...

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """At most ``limit`` users in ``order`` of position.

        Args:
            limit: at least 1.
            order: by position.
            after: begin behind this position (None: at the beginning).
            mailbox: only the user of this mailbox.

        Raises:
            StorageUnavailable: the store cannot answer.
        """
        ...

    async def check(self) -> None:
        """Return if the store answers.

        Raises:
            StorageUnavailable: it does not.
        """
        ...


class PasswordHasher(Protocol):
    """Turns a password into what may be stored, without keeping the event loop waiting."""

    async def hash(self, password: Password) -> PasswordHash:
        """A salted hash that names its own scheme; all of the password counts."""
        ...


class Notifier(Protocol):
    """Tells people things."""

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user. May raise anything: the caller copes."""
        ...
