"""Users and their outbox in memory: for tests, and for a service whose users may be forgotten."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
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
    UserRecord,
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

    def forget(self, user_id: UUID) -> None:
        """Take out whatever is about this user."""
        self._entries = {entry.id: entry for entry in self._entries.values() if entry.event.user_id != user_id}

    def _is_held(self, entry: OutboxEntry) -> bool:
        held = self._entries.get(entry.id)
        return held is not None and held.lease is not None and held.lease == entry.lease


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    Everything happens between two awaits of one event loop, so it needs no lock.
    """

    def __init__(self) -> None:
        self.outbox = InMemoryOutbox()
        self._last_position = 0
        # In order of position, and so is the list, which can be searched.
        self._users: dict[int, User] = {}
        self._positions: list[int] = []
        self._position_of_mailbox: dict[str, int] = {}
        self._position_of_id: dict[UUID, int] = {}
        # In the order in which they were used, and so in which they end.
        self._user_of_key: dict[IdempotencyKey, User] = {}
        self.archive = InMemoryArchive(self._users, self._positions, self._position_of_mailbox, self._position_of_id)

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """See ``Users.add``."""
        self._forget_keys(user.registered_at)
        if key is not None and key in self._user_of_key:
            raise IdempotencyKeyUsed
        if user.email.mailbox in self._position_of_mailbox:
            raise EmailAlreadyRegistered
        self._put(user)
        if key is not None:
            self._user_of_key[key] = user

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """See ``Users.add_all``."""
        stored = []
        for user in users:
            free = user.email.mailbox not in self._position_of_mailbox and user.id not in self._position_of_id
            if free:
                self._put(user)
            stored.append(free)
        return stored

    def _put(self, user: User) -> None:
        self._last_position += 1
        self._users[self._last_position] = user
        self._positions.append(self._last_position)
        self._position_of_mailbox[user.email.mailbox] = self._position_of_id[user.id] = self._last_position
        for event in user.events:
            self.outbox.put(event)

    async def remove(self, user_id: UUID) -> bool:
        """See ``Users.remove``."""
        position = self._position_of_id.pop(user_id, None)
        if position is None:
            return False
        user = self._users.pop(position)
        del self._positions[bisect_left(self._positions, position)]
        del self._position_of_mailbox[user.email.mailbox]
        self._user_of_key = {key: other for key, other in self._user_of_key.items() if other.id != user_id}
        self.outbox.forget(user_id)
        return True

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
        return None if position is None else view_of(self._users[position])

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        positions = self._positions
        if mailbox is not None:
            position = self._position_of_mailbox.get(mailbox)
            positions = [] if position is None else [position]
        # One more than asked for tells whether there is a next page.
        if order is Order.ASC:
            begin = 0 if after is None else bisect_right(positions, after)
            shown = positions[begin : begin + limit + 1]
        else:
            end = len(positions) if after is None else bisect_left(positions, after)
            shown = positions[max(0, end - limit - 1) : end][::-1]
        return Page(
            lines=b"\n".join(
                json.dumps(view_of(self._users[position]), separators=(",", ":"), ensure_ascii=False).encode()
                for position in shown[:limit]
            ),
            next_after=shown[limit - 1] if len(shown) > limit else None,
        )

    async def check(self) -> None:
        """See ``Users.check``; memory always answers."""


class InMemoryArchive:
    """An ``Archive`` of what an ``InMemoryUsers`` holds."""

    def __init__(
        self,
        users: Mapping[int, User],
        positions: Sequence[int],
        position_of_mailbox: Mapping[str, int],
        position_of_id: Mapping[UUID, int],
    ) -> None:
        self._users = users
        self._positions = positions
        self._position_of_mailbox = position_of_mailbox
        self._position_of_id = position_of_id

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """See ``Archive.users``."""
        begin = 0 if after is None else bisect_right(self._positions, after)
        return [self._record(position) for position in self._positions[begin : begin + limit]]

    async def holders(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.holders``."""
        found = {self._position_of_mailbox.get(mailbox) for mailbox in mailboxes}
        found |= {self._position_of_id.get(user_id) for user_id in ids}
        return [self._record(position) for position in sorted(each for each in found if each is not None)]

    async def count(self) -> int:
        """See ``Archive.count``."""
        return len(self._users)

    def _record(self, position: int) -> UserRecord:
        user = self._users[position]
        return UserRecord(
            position=position,
            id=user.id,
            email=user.email.typed,
            mailbox=user.email.mailbox,
            age=user.age.years,
            password_hash=user.password_hash,
            registered_at=user.registered_at,
        )
