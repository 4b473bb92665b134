"""The ports: what the use cases need from outside."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey
from usersvc.application.outbox_entries import LAST, OutboxEntry, OutboxState
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User


class Users(Protocol):
    """The registered users, as a collection that outlives the process.

    Each user has a position: a number that the collection gives out in the order in which users become visible.
    Paging by it (a keyset page) can neither repeat nor skip anybody, whoever comes or goes meanwhile. A time of
    registration could: two users may be stored in the other order than their clocks were read.
    """

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """Store a new user, its events and the key in one transaction; when this returns, all are durable.

        The events are stored with the current ``request_context``. The mail about each is due as soon as the limits on
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


class UserQueries(Protocol):
    """Reads users for display. Every method raises ``StorageUnavailable`` if the store does not respond."""

    async def find(self, user_id: UUID) -> UserView | None:
        """The user with this id; None if there is none."""
        ...

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """At most ``limit`` users in ``order`` of position.

        Args:
            limit: at least 1.
            order: by position.
            after: start after this position; None for the first page.
            mailbox: only the user with this mailbox.
        """
        ...


class HealthCheck(Protocol):
    """Checks that a store works."""

    async def check(self) -> None:
        """Return if users can be stored and read.

        Raises:
            StorageUnavailable: they cannot.
        """
        ...


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
        """Delete the entry: the mail is delivered."""
        ...

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """Schedule the next attempt."""
        ...

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        """Keep the entry, but retry it no more."""
        ...

    async def next_due(self) -> datetime | None:
        """When the first entry is, or ends being leased and is, due; None when none waits."""
        ...

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """At most ``limit`` entries (None: all) in order of id, that is of registration, with ids above ``after``."""
        ...

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """Make an entry due, also one that was dead-lettered, with its attempts forgotten.

        False when there is none, or when somebody holds it, who is trying it just now.
        """
        ...

    async def state(self) -> OutboxState:
        """The metrics of the outbox."""
        ...


class Archive(Protocol):
    """The users of a store as they are stored, for moving them in and out.

    Every method raises ``StorageUnavailable`` when the store cannot answer.
    """

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """At most ``limit`` users in order of position, beginning behind position ``after`` (None: at the first)."""
        ...

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """Whoever has one of these mailboxes or one of these ids: each once, in order of position.

        Args:
            mailboxes: up to some thousands, in any order, also repeated.
            ids: the same.
        """
        ...

    async def count(self) -> int:
        """How many users there are."""
        ...


class Store(Users, UserQueries, HealthCheck, Protocol):
    """Everything that one store keeps."""

    @property
    def outbox(self) -> Outbox:
        """What is still to be told."""
        ...

    @property
    def archive(self) -> Archive:
        """The same as it is stored."""
        ...


class PasswordHasher(Protocol):
    """Hashes and verifies passwords without blocking the event loop."""

    async def hash(self, password: Password) -> PasswordHash:
        """A salted hash that names its own scheme; all of the password counts.

        Raises:
            QueueFull: the queue is full; immediately, before any computation.
        """
        ...

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """Whether the hash was made from this password; it takes as long as hashing.

        Raises:
            QueueFull: the queue is full; immediately, before any computation.
            ValueError: the hash is of another scheme, or was made with another key.
        """
        ...


class Notifier(Protocol):
    """Sends mails to users."""

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user.

        Raises:
            Undeliverable: retrying is useless.
            Exception: any other error; retrying may help.
        """
        ...
