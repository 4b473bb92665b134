"""Users and their outbox in memory: for tests, and for a service whose users may be forgotten."""

import json
from dataclasses import replace
from datetime import datetime
from heapq import nsmallest
from uuid import UUID, uuid4

from usersvc.application.ports import (
    CAUSE,
    KEY_LIFETIME,
    LAST,
    EarlierRegistration,
    IdempotencyKey,
    IdempotencyKeyUsed,
    Order,
    OutboxEntry,
    OutboxState,
    Page,
    UserView,
    view_of,
)
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import User


class InMemoryOutbox:
    """An ``Outbox`` that lives as long as the process."""

    def __init__(self) -> None:
        self._entries: dict[int, OutboxEntry] = {}
        self._last_id = 0

    def put(self, event: UserRegistered) -> None:
        """Add an event, due at once."""
        self._last_id += 1
        self._entries[self._last_id] = OutboxEntry(
            id=self._last_id, event=event, attempts=0, due_at=event.occurred_at, reason=None, cause=CAUSE.get()
        )

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """See ``Outbox.lease``."""
        due = [
            (entry.due_at, entry.id, entry)
            for entry in self._entries.values()
            if entry.due_at is not None and not now < entry.due_at <= latest
        ]
        leased = [
            replace(entry, attempts=entry.attempts + 1, due_at=until, lease=str(uuid4()))
            for *_, entry in nsmallest(limit, due)
        ]
        self._entries.update((entry.id, entry) for entry in leased)
        return leased

    async def delivered(self, entry: OutboxEntry) -> None:
        """See ``Outbox.delivered``."""
        if self._is_held(entry):
            del self._entries[entry.id]

    async def postpone(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """See ``Outbox.postpone``."""
        if self._is_held(entry):
            self._entries[entry.id] = replace(entry, due_at=due_at, reason=reason, lease=None)

    async def set_aside(self, entry: OutboxEntry, *, reason: str) -> None:
        """See ``Outbox.set_aside``."""
        if self._is_held(entry):
            self._entries[entry.id] = replace(entry, due_at=None, reason=reason, lease=None)

    async def next_due(self) -> datetime | None:
        """See ``Outbox.next_due``."""
        return min((entry.due_at for entry in self._entries.values() if entry.due_at is not None), default=None)

    async def entries(self) -> list[OutboxEntry]:
        """See ``Outbox.entries``."""
        return list(self._entries.values())

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """See ``Outbox.retry``."""
        entry = self._entries.get(entry_id)
        if entry is None or (entry.lease is not None and entry.due_at is not None and entry.due_at > now):
            return False
        self._entries[entry_id] = replace(entry, due_at=now, attempts=0, lease=None)
        return True

    async def state(self) -> OutboxState:
        """See ``Outbox.state``."""
        pending = [entry.event.occurred_at for entry in self._entries.values() if entry.due_at is not None]
        return OutboxState(
            pending=len(pending),
            set_aside=len(self._entries) - len(pending),
            oldest=pending[0] if pending else None,
        )

    def _is_held(self, entry: OutboxEntry) -> bool:
        held = self._entries.get(entry.id)
        return held is not None and held.lease is not None and held.lease == entry.lease


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    Everything happens between two awaits of one event loop, so it needs no lock.
    """

    def __init__(self) -> None:
        self.outbox = InMemoryOutbox()
        self._users: list[User] = []
        self._position_of_mailbox: dict[str, int] = {}
        self._position_of_id: dict[UUID, int] = {}
        # In the order in which they were used, and so in which they end.
        self._user_of_key: dict[IdempotencyKey, User] = {}

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """See ``Users.add``."""
        self._forget_keys(user.registered_at)
        if key is not None and key in self._user_of_key:
            raise IdempotencyKeyUsed
        if user.email.mailbox in self._position_of_mailbox:
            raise EmailAlreadyRegistered
        self._users.append(user)
        self._position_of_mailbox[user.email.mailbox] = self._position_of_id[user.id] = len(self._users)
        if key is not None:
            self._user_of_key[key] = user
        for event in user.events:
            self.outbox.put(event)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """See ``Users.registered_with``."""
        user = self._user_of_key.get(key)
        if user is None or user.registered_at + KEY_LIFETIME <= at:
            return None
        return EarlierRegistration(view_of(user), user.password_hash)

    def _forget_keys(self, at: datetime) -> None:
        while self._user_of_key:
            oldest, user = next(iter(self._user_of_key.items()))
            if user.registered_at + KEY_LIFETIME > at:
                return
            del self._user_of_key[oldest]

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        position = self._position_of_id.get(user_id)
        return None if position is None else view_of(self._users[position - 1])

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        last = len(self._users)
        if order is Order.ASC:
            positions = range((after or 0) + 1, last + 1)
        else:
            positions = range(last if after is None else min(after - 1, last), 0, -1)
        if mailbox is not None:
            position = self._position_of_mailbox.get(mailbox, 0)
            positions = range(position, position + 1) if position in positions else range(0)
        shown = positions[:limit]
        return Page(
            lines=b"\n".join(
                json.dumps(view_of(self._users[position - 1]), separators=(",", ":"), ensure_ascii=False).encode()
                for position in shown
            ),
            next_after=shown[-1] if len(positions) > limit else None,
        )

    async def check(self) -> None:
        """See ``Users.check``; memory always answers."""
