"""The ports: what the use cases need from outside."""

# The methods of a Protocol have no bodies, which mypy knows and pyright does not.
# pyright: reportReturnType=false

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

    Each user has a position, which increases in the order in which users become visible, unlike the time of
    registration: so keyset pages neither repeat nor skip a user when others are added or removed.
    Every method raises ``StorageUnavailable`` if the store does not respond; a change may have been stored, or not.
    """

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """Store a new user, its events and the key in one transaction; when this returns, all are durable.

        The events are stored with the current ``request_context``; the mail about each is due as soon as
        ``usersvc.domain.mail_limits`` allow. The key lives ``KEY_LIFETIME``.

        Raises:
            IdempotencyKeyUsed: the key has been used; this is checked before the mailbox.
            EmailAlreadyRegistered: the mailbox belongs to another user.
        """

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """Store many users with their events in one transaction, in this order, and return whether each was stored.

        A user is not stored if its mailbox or id belongs to another, stored or earlier in ``users``.
        """

    async def remove(self, user_id: UUID) -> bool:
        """Delete a user, its outbox entries and its idempotency keys in one transaction; return whether it existed.

        The mailbox, the id and the keys can be used again; the position cannot. Entries are deleted even while leased.
        """

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """The registration that used this key, if the key is still alive at that time and the user exists."""


class UserQueries(Protocol):
    """Reads users for display. Every method raises ``StorageUnavailable`` if the store does not respond."""

    async def find(self, user_id: UUID) -> UserView | None:
        """The user with this id; None if there is none."""

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """At most ``limit`` users (at least 1) after position ``after`` in ``order``, or only that of ``mailbox``."""


class Outbox(Protocol):
    """Events stored together with their users, until their mails are delivered.

    A worker leases entries and reports the result of each, without effect if another worker has leased the entry since.
    Every method raises ``StorageUnavailable`` if the store does not respond.
    """

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """Lease at most ``limit`` due entries, the longest due first; no other worker gets them before ``until``.

        An entry that is due after ``latest`` was rescheduled by a wrong clock and is leased too, unless it is delayed
        by a mail limit (``is_rate_limited``), which can take any time.
        """

    async def delivered(self, entry: OutboxEntry) -> None:
        """Delete the entry: the mail is delivered."""

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """Schedule the next attempt."""

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        """Keep the entry, but retry it no more."""

    async def next_due(self) -> datetime | None:
        """When the first entry is due or its lease ends; None without any."""

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """At most ``limit`` entries (None: all) with ids above ``after``, in order of id, that is of registration."""

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """Make an entry due and reset its attempts, also if it is dead-lettered; False if it is missing or leased."""

    async def state(self) -> OutboxState:
        """The metrics of the outbox."""


class Archive(Protocol):
    """The stored users, for export and import; every method raises ``StorageUnavailable`` if that fails."""

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """At most ``limit`` users in order of position, after position ``after`` (None: from the first)."""

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """The users with one of these mailboxes or ids, up to some thousands of each; in order of position."""


class Store(Users, UserQueries, Protocol):
    """Everything that one store keeps."""

    @property
    def outbox(self) -> Outbox:
        """The events whose mails are not delivered yet."""

    @property
    def archive(self) -> Archive:
        """The users as they are stored."""

    async def check(self) -> None:
        """Return if users can be stored and read, otherwise raise ``StorageUnavailable``."""


class PasswordHasher(Protocol):
    """Hashes and verifies passwords outside the event loop; both raise ``QueueFull`` at once if the queue is full."""

    async def hash(self, password: Password) -> PasswordHash:
        """A salted hash of the whole password, which names its own scheme."""

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """Whether the hash was made from this password; it takes as long as hashing.

        Raises ``ValueError`` if the hash is of another scheme, or was made with another key.
        """


class Notifier(Protocol):
    """Sends mails to users."""

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user; after any error but ``Undeliverable``, retrying may help."""
