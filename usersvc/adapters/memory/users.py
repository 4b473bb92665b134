"""Users and their outbox in memory: for tests, and for a service whose users may be forgotten."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from heapq import nsmallest
from itertools import islice
from uuid import UUID, uuid4

from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import Reserved, reserve
from usersvc.domain.user import User


class InMemoryOutbox:
    """An ``Outbox`` that lives as long as the process."""

    def __init__(self) -> None:
        self._entries: dict[int, OutboxEntry] = {}
        self._reserved: dict[str, Reserved] = {}
        self._last_id = 0

    def put(self, event: UserRegistered) -> None:
        """Add an event, due as soon as the limits on mails allow."""
        due_at, reserved = reserve(event, self._reserved)
        self._forget_ended(event.occurred_at)
        self._reserved |= reserved
        self._last_id += 1
        self._entries[self._last_id] = OutboxEntry(
            id=self._last_id,
            event=event,
            attempts=0,
            due_at=due_at,
            reason=RATE_LIMITED if due_at > event.occurred_at else None,
            context=request_context.get(),
        )

    def _forget_ended(self, now: datetime) -> None:
        # A few each time, in turn: more than a mail adds.
        for digest, reserved in [*islice(self._reserved.items(), 4)]:
            del self._reserved[digest]
            if reserved.until > now:
                self._reserved[digest] = reserved

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        """See ``Outbox.lease``."""
        due = [
            (entry.due_at, entry.id, entry)
            for entry in self._entries.values()
            if entry.due_at is not None
            and (entry.due_at <= now or (entry.due_at > latest and not entry.is_rate_limited))
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

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        """See ``Outbox.reschedule``."""
        if self._is_held(entry):
            self._entries[entry.id] = replace(entry, due_at=due_at, reason=reason, lease=None)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        """See ``Outbox.dead_letter``."""
        if self._is_held(entry):
            self._entries[entry.id] = replace(entry, due_at=None, reason=reason, lease=None)

    async def next_due(self) -> datetime | None:
        """See ``Outbox.next_due``."""
        return min((entry.due_at for entry in self._entries.values() if entry.due_at is not None), default=None)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        """See ``Outbox.entries``."""
        return [entry for entry in self._entries.values() if entry.id > (after or 0)][:limit]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        """See ``Outbox.retry``."""
        entry = self._entries.get(entry_id)
        if entry is None or (entry.lease is not None and entry.due_at is not None and entry.due_at > now):
            return False
        self._entries[entry_id] = replace(entry, due_at=now, attempts=0, lease=None)
        return True

    async def state(self) -> OutboxState:
        """See ``Outbox.state``."""
        pending = [entry for entry in self._entries.values() if entry.due_at is not None]
        return OutboxState(
            pending=len(pending),
            dead_lettered=len(self._entries) - len(pending),
            oldest=next((entry.event.occurred_at for entry in pending if not entry.is_rate_limited), None),
        )

    def forget(self, user_id: UUID) -> None:
        """Delete the entries of this user."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.event.user_id != user_id}

    def _is_held(self, entry: OutboxEntry) -> bool:
        held = self._entries.get(entry.id)
        return held is not None and held.lease is not None and held.lease == entry.lease


class _People:
    """Whom an ``InMemoryUsers`` knows, and under which keys."""

    def __init__(self) -> None:
        self.last_position = 0
        # In order of position, and so is the list, which can be searched.
        self.users: dict[int, UserRecord] = {}
        self.positions: list[int] = []
        self.position_of_mailbox: dict[str, int] = {}
        self.position_of_id: dict[UUID, int] = {}
        # Who registered with a key, and when, by its digest: in the order of use, and so of expiry.
        self.keys: dict[str, tuple[UUID, datetime]] = {}

    def put(self, user: UserRecord) -> None:
        """Store a user behind all others."""
        self.last_position = user.position
        self.positions.append(user.position)
        self.users[user.position] = user
        self.position_of_mailbox[user.mailbox] = self.position_of_id[user.id] = user.position

    def remove(self, position: int) -> UUID:
        """Forget somebody, keys and all; gives their id."""
        user = self.users.pop(position)
        del self.positions[bisect_left(self.positions, position)]
        del self.position_of_mailbox[user.mailbox], self.position_of_id[user.id]
        self.keys = {digest: key for digest, key in self.keys.items() if key[0] != user.id}
        return user.id


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    Everything happens between two awaits of one event loop, so it needs no lock.
    """

    def __init__(self) -> None:
        self._people = _People()
        self.outbox = InMemoryOutbox()
        self.archive = InMemoryArchive(self._people)

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        """See ``Users.add``."""
        people = self._people
        self._forget_keys(user.registered_at)
        if key is not None and key.digest in people.keys:
            raise IdempotencyKeyUsed
        if user.email.mailbox in people.position_of_mailbox:
            raise EmailAlreadyRegistered
        self._put(user)
        if key is not None:
            people.keys[key.digest] = user.id, user.registered_at

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """See ``Users.add_all``."""
        people = self._people
        stored = []
        for user in users:
            free = user.email.mailbox not in people.position_of_mailbox and user.id not in people.position_of_id
            if free:
                self._put(user)
            stored.append(free)
        return stored

    def _put(self, user: User) -> None:
        self._people.put(
            UserRecord(
                position=self._people.last_position + 1,
                id=user.id,
                email=user.email.typed,
                mailbox=user.email.mailbox,
                age=user.age.years,
                password_hash=user.password_hash,
                registered_at=user.registered_at,
            )
        )
        for event in user.events:
            self.outbox.put(event)

    async def remove(self, user_id: UUID) -> bool:
        """See ``Users.remove``."""
        position = self._people.position_of_id.get(user_id)
        if position is None:
            return False
        self.outbox.forget(self._people.remove(position))
        return True

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        """See ``Users.registered_with``."""
        used = self._people.keys.get(key.digest)
        if used is None or used[1] + KEY_LIFETIME <= at:
            return None
        user = self._people.users[self._people.position_of_id[used[0]]]
        return EarlierRegistration(_view(user), user.password_hash)

    def _forget_keys(self, at: datetime) -> None:
        keys = self._people.keys
        while keys:
            digest, (_, used_at) = next(iter(keys.items()))
            if used_at + KEY_LIFETIME > at:
                return
            del keys[digest]

    async def find(self, user_id: UUID) -> UserView | None:
        """See ``Users.find``."""
        position = self._people.position_of_id.get(user_id)
        return None if position is None else _view(self._people.users[position])

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        positions = self._people.positions
        if mailbox is not None:
            position = self._people.position_of_mailbox.get(mailbox)
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
                json.dumps(_view(self._people.users[position]), separators=(",", ":"), ensure_ascii=False).encode()
                for position in shown[:limit]
            ),
            next_after=shown[limit - 1] if len(shown) > limit else None,
        )

    async def check(self) -> None:
        """See ``Users.check``; memory always answers."""


class InMemoryArchive:
    """An ``Archive`` of what an ``InMemoryUsers`` holds."""

    def __init__(self, people: _People) -> None:
        self._people = people

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        """See ``Archive.users``."""
        begin = 0 if after is None else bisect_right(self._people.positions, after)
        return [self._people.users[position] for position in self._people.positions[begin : begin + limit]]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """See ``Archive.find_matching``."""
        found = {self._people.position_of_mailbox.get(mailbox) for mailbox in mailboxes}
        found |= {self._people.position_of_id.get(user_id) for user_id in ids}
        return [self._people.users[position] for position in sorted(each for each in found if each is not None)]

    async def count(self) -> int:
        """See ``Archive.count``."""
        return len(self._people.users)


def _view(user: UserRecord) -> UserView:
    return {
        "id": str(user.id),
        "email": user.email,
        "age": user.age,
        "registered_at": timestamp(user.registered_at),
    }
