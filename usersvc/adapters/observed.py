"""Ports that tell an instrument of every call: what is behind them, and whoever calls them, knows nothing of it.

Each stands in front of another of its kind; several instruments are several in a row.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing
from datetime import datetime
from typing import Protocol
from uuid import UUID

from usersvc.application.ports import (
    LAST,
    EarlierRegistration,
    IdempotencyKey,
    Notifier,
    Order,
    Outbox,
    OutboxEntry,
    OutboxState,
    Page,
    PasswordHasher,
    Users,
    UserView,
)
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import Password, PasswordHash, User


class Instrument(Protocol):
    """What watches the ports: each method is entered around one call, and sees how that ends, not what it is given."""

    def storage_call(self, operation: str) -> AbstractContextManager[None]:
        """Around a call of ``Users`` or ``Outbox``; those of the latter are named ``outbox_...``."""
        ...

    def hashing(self, operation: str) -> AbstractContextManager[None]:
        """Around ``hash`` or ``verify`` of a ``PasswordHasher``."""
        ...

    def notification(self) -> AbstractContextManager[None]:
        """Around an attempt of a ``Notifier`` to tell somebody; ``CAUSE`` is what led to it."""
        ...


class ObservedPasswordHasher:
    """A ``PasswordHasher`` in front of another."""

    def __init__(self, hasher: PasswordHasher, instrument: Instrument) -> None:
        self._hasher = hasher
        self._hashing = instrument.hashing

    async def hash(self, password: Password) -> PasswordHash:
        """See ``PasswordHasher.hash``."""
        with self._hashing("hash"):
            return await self._hasher.hash(password)

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """See ``PasswordHasher.verify``."""
        with self._hashing("verify"):
            return await self._hasher.verify(password, password_hash)


class ObservedNotifier:
    """A ``Notifier`` in front of another."""

    def __init__(self, notifier: Notifier, instrument: Instrument) -> None:
        self._notifier = notifier
        self._notification = instrument.notification

    async def welcome(self, event: UserRegistered) -> None:
        """See ``Notifier.welcome``."""
        with self._notification():
            await self._notifier.welcome(event)


class ObservedUsers:
    """A ``Users`` in front of another."""

    def __init__(self, users: Users, instrument: Instrument) -> None:
        self._users = users
        self._call = instrument.storage_call

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """See ``Users.add``."""
        with self._call("add"):
            await self._users.add(user, key=key)

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """See ``Users.add_all``."""
        with self._call("add_all"):
            return await self._users.add_all(users)

    async def remove(self, user_id: UUID) -> bool:
        """See ``Users.remove``."""
        with self._call("remove"):
            return await self._users.remove(user_id)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """See ``Users.registered_with``."""
        with self._call("registered_with"):
            return await self._users.registered_with(key, at=at)

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        with self._call("find"):
            return await self._users.find(user_id)

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        with self._call("page"):
            return await self._users.page(limit=limit, order=order, after=after, mailbox=mailbox)

    async def batches(
        self, *, order: Order, after: int | None, mailbox: str | None, limit: int | None
    ) -> AsyncGenerator[bytes, None]:
        """See ``Users.batches``; each batch is a call, and what the reader does in between is none."""
        everybody = self._users.batches(order=order, after=after, mailbox=mailbox, limit=limit)
        async with aclosing(everybody):
            while True:
                with self._call("batches"):
                    batch = await anext(everybody, None)
                if batch is None:
                    return
                yield batch

    async def check(self) -> None:
        """See ``Users.check``."""
        with self._call("check"):
            await self._users.check()


class ObservedOutbox:
    """An ``Outbox`` in front of another."""

    def __init__(self, outbox: Outbox, instrument: Instrument) -> None:
        self._outbox = outbox
        self._call = instrument.storage_call

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """See ``Outbox.lease``."""
        with self._call("outbox_lease"):
            return await self._outbox.lease(now=now, until=until, limit=limit, latest=latest)

    async def delivered(self, entry: OutboxEntry) -> None:
        """See ``Outbox.delivered``."""
        with self._call("outbox_delivered"):
            await self._outbox.delivered(entry)

    async def postpone(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """See ``Outbox.postpone``."""
        with self._call("outbox_postpone"):
            await self._outbox.postpone(entry, due_at=due_at, reason=reason)

    async def set_aside(self, entry: OutboxEntry, *, reason: str) -> None:
        """See ``Outbox.set_aside``."""
        with self._call("outbox_set_aside"):
            await self._outbox.set_aside(entry, reason=reason)

    async def next_due(self) -> datetime | None:
        """See ``Outbox.next_due``."""
        with self._call("outbox_next_due"):
            return await self._outbox.next_due()

    async def entries(self, *, after: int = 0, limit: int | None = None) -> list[OutboxEntry]:
        """See ``Outbox.entries``."""
        with self._call("outbox_entries"):
            return await self._outbox.entries(after=after, limit=limit)

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """See ``Outbox.retry``."""
        with self._call("outbox_retry"):
            return await self._outbox.retry(entry_id, now=now)

    async def state(self) -> OutboxState:
        """See ``Outbox.state``."""
        with self._call("outbox_state"):
            return await self._outbox.state()
