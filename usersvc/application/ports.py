"""What the use cases need from outside, in the language of the domain, and what can go wrong there."""

import hashlib
import json
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol, Self, TypedDict
from uuid import UUID

from usersvc.domain.errors import DomainError
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import Password, PasswordHash, User


@dataclass(frozen=True, slots=True)
class Cause:
    """What some work is done for, so that those who look into it later find all that belongs together."""

    request_id: str
    trace_id: str | None = None
    """Of the trace that the request belongs to (W3C Trace Context): 32 hexadecimal digits."""
    span_id: str | None = None
    """Of the request as a part of that trace, when it is recorded as one: 16 hexadecimal digits."""


CAUSE: ContextVar[Cause | None] = ContextVar("CAUSE", default=None)
"""For what the work in this context is done; None: for nothing that came from outside."""


class StorageUnavailable(DomainError):
    """The store cannot answer just now: locked for too long, full, unreachable. The message is for the log."""


class UserView(TypedDict):
    """What anybody may see of a user: a read model, ready to be written as JSON, never with the password."""

    id: str
    email: str
    age: int
    registered_at: str


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


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


KEY_LIFETIME = timedelta(hours=24)
"""How long a registration can be repeated under its idempotency key."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a client calls one registration, so that a repeat is known for one.

    See draft-ietf-httpapi-idempotency-key-header.
    """

    digest: str
    """SHA-256 of the key alone, in hexadecimal: the key itself may say more than it should."""

    @classmethod
    def named(cls, text: str) -> Self:
        """The key that a client has sent, as visible ASCII."""
        return cls(hashlib.sha256(text.encode("ascii")).hexdigest())


class IdempotencyKeyUsed(DomainError):
    """A registration under this key has succeeded already."""


@dataclass(frozen=True, slots=True)
class EarlierRegistration:
    """What a registration under a key came to, and what tells whether another one is the same."""

    user: UserView
    password_hash: PasswordHash = field(repr=False)


class Users(Protocol):
    """The registered users, as a collection that outlives the process.

    Each user has a position: a number that the collection gives out in the order in which users become visible.
    Paging by it (a keyset page) can neither repeat nor skip anybody, whoever comes or goes meanwhile. A time of
    registration could: two users may be stored in the other order than their clocks were read.
    """

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """Store a new user, its events and the key in one transaction; when this returns, all are durable.

        The events are stored with the ``CAUSE`` of this context. The mail about each is due as soon as the limits on
        its mailbox and its domain allow (``usersvc.domain.mail_limits``).

        Args:
            user: with its events.
            key: what the registration is called, for ``KEY_LIFETIME`` from the time of registration.

        Raises:
            IdempotencyKeyUsed: the key names a registration already; whether the mailbox is free is not looked at.
            EmailAlreadyRegistered: the mailbox belongs to somebody already.
            StorageUnavailable: it is not known whether the user was stored.
        """
        ...

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """Store many users in one transaction, in this order, with whatever events they have.

        Args:
            users: also more than one with one mailbox or one id, of whom the first is stored.

        Returns:
            For each of them whether it was stored; False where the mailbox or the id belongs to somebody already.

        Raises:
            StorageUnavailable: it is not known whether they were stored: all who could be, or none.
        """
        ...

    async def remove(self, user_id: UUID) -> bool:
        """Forget a user, what the outbox holds for them, and their idempotency keys, in one transaction.

        The mailbox, the id and the keys are free again; the position is not. Whoever holds a lease of an entry that
        goes may still tell the person; what becomes of that changes nothing.

        Returns:
            False when nobody has this id.

        Raises:
            StorageUnavailable: it is not known whether the user was removed.
        """
        ...

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """What was registered under this key, if it lives at that time and the user is still there.

        Raises:
            StorageUnavailable: the store cannot answer.
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


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event that somebody is still to be told of."""

    id: int
    event: UserRegistered
    attempts: int
    """How often it has been tried, this time included."""
    due_at: datetime | None
    """When it is to be tried next, in UTC; None when it has been set aside."""
    reason: str | None
    """Why the last attempt failed; before the first one, ``RATE_LIMITED`` or None."""
    lease: str | None = None
    """Names who holds it, for the answers below."""
    cause: Cause | None = None
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
    set_aside: int | None
    oldest: datetime | None
    """When what the longest pending entry tells of has happened, in UTC, but for those that wait because of a limit;
    None when there is none."""


RATE_LIMITED = "waits, since many mails went to this mailbox or domain"
"""The reason of an entry that was put off when it was stored (``usersvc.domain.mail_limits``)."""

LAST = datetime.max.replace(tzinfo=UTC)
"""No time is later."""


class Outbox(Protocol):
    """Events stored together with their users, until somebody has been told.

    Whoever leases an entry holds it alone until the lease ends, and gives one of three answers; an answer that comes
    after the lease was given to somebody else changes nothing. Every method raises ``StorageUnavailable`` when the
    store cannot answer.
    """

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """Take at most ``limit`` entries that are due, the longest due first; nobody else has them before ``until``.

        One that is due only after ``latest`` was put off by a clock that was wrong, and is taken too, unless it waits
        for its first attempt because of a limit (``is_rate_limited``), which may take any time.
        """
        ...

    async def delivered(self, entry: OutboxEntry) -> None:
        """Forget the entry: the person has been told."""
        ...

    async def postpone(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """Have it tried again."""
        ...

    async def set_aside(self, entry: OutboxEntry, *, reason: str) -> None:
        """Keep it, but do not try it again by itself."""
        ...

    async def next_due(self) -> datetime | None:
        """When the first entry is, or ends being leased and is, due; None when none waits."""
        ...

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """At most ``limit`` entries (None: all) in order of id, that is of registration, with ids above ``after``."""
        ...

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """Make an entry due, also one that was set aside, with its attempts forgotten.

        False when there is none, or when somebody holds it, who is trying it just now.
        """
        ...

    async def state(self) -> OutboxState:
        """How much is in it."""
        ...


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


class Archive(Protocol):
    """The users of a store as they are stored, for moving them in and out.

    Every method raises ``StorageUnavailable`` when the store cannot answer.
    """

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """At most ``limit`` users in order of position, beginning behind position ``after`` (None: at the first)."""
        ...

    async def holders(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """Whoever has one of these mailboxes or one of these ids: each once, in order of position.

        Args:
            mailboxes: up to some thousands, in any order, also repeated.
            ids: the same.
        """
        ...

    async def count(self) -> int:
        """How many users there are."""
        ...


class Store(Users, Protocol):
    """Everything that one store keeps."""

    @property
    def outbox(self) -> Outbox:
        """What is still to be told."""
        ...

    @property
    def archive(self) -> Archive:
        """The same as it is stored."""
        ...


class Undeliverable(DomainError):
    """This message will never reach this person; the text says why, and names no address."""


class QueueFull(DomainError):
    """Too many passwords wait to be hashed; ``retry_after`` says in how many whole seconds there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"no room before {retry_after} s have passed")
        self.retry_after = retry_after


class PasswordHasher(Protocol):
    """Turns a password into what may be stored, without keeping the event loop waiting."""

    async def hash(self, password: Password) -> PasswordHash:
        """A salted hash that names its own scheme; all of the password counts.

        Raises:
            QueueFull: too many wait already; at once, before anything is done.
        """
        ...

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """Tell whether this password gave that hash; it costs what hashing costs.

        Raises:
            QueueFull: too many wait already; at once, before anything is done.
            ValueError: the hash is of another scheme, or was made with another key.
        """
        ...


class Notifier(Protocol):
    """Tells people things."""

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user.

        Raises:
            Undeliverable: trying again is of no use.
            Exception: anything else means that trying again may help.
        """
        ...
