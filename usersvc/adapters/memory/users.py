"""Users in memory: for tests, and for a service that need not keep its users."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from uuid import UUID

from usersvc.adapters.memory.outbox import InMemoryOutbox
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User

_position = attrgetter("position")


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    No method waits for anything, so none needs a lock.
    """

    def __init__(self) -> None:
        self._last_position = 0
        # User and time of use by the digest of the key; at most one for each user, so expired keys may stay.
        self._keys: dict[str, tuple[UUID, datetime]] = {}
        self.outbox = InMemoryOutbox()
        self.archive = InMemoryArchive()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        if key is not None and await self.registered_with(key, at=user.registered_at):
            raise IdempotencyKeyUsed
        if not self._put(user):
            raise EmailAlreadyRegistered
        if key is not None:
            self._keys[key.digest] = user.id, user.registered_at

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        return [self._put(user) for user in users]

    def _put(self, user: User) -> bool:
        by_id, by_mailbox = self.archive.by_id, self.archive.by_mailbox
        if user.id in by_id or user.email.mailbox in by_mailbox:
            return False
        self._last_position += 1
        by_id[user.id] = by_mailbox[user.email.mailbox] = UserRecord.of(user, position=self._last_position)
        for event in user.events:
            self.outbox.put(event)
        return True

    async def remove(self, user_id: UUID) -> bool:
        user = self.archive.by_id.pop(user_id, None)
        if user is None:
            return False
        del self.archive.by_mailbox[user.mailbox]
        self._keys = {digest: key for digest, key in self._keys.items() if key[0] != user_id}
        self.outbox.remove_user(user_id)
        return True

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        user_id, used_at = self._keys.get(key.digest, (None, at))
        if user_id is None or used_at + KEY_LIFETIME <= at:
            return None
        user = self.archive.by_id[user_id]
        return EarlierRegistration(user.view, user.password_hash)

    async def find(self, user_id: UUID) -> UserView | None:
        user = self.archive.by_id.get(user_id)
        return None if user is None else user.view

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        if mailbox is None:
            users = list(self.archive.by_id.values())
        else:
            users = [user for user in [self.archive.by_mailbox.get(mailbox)] if user is not None]
        # One row more than requested shows whether there is a next page.
        if order is Order.ASC:
            begin = bisect_right(users, after or 0, key=_position)
            shown = users[begin : begin + limit + 1]
        else:
            end = len(users) if after is None else bisect_left(users, after, key=_position)
            shown = users[max(0, end - limit - 1) : end][::-1]
        lines = (json.dumps(user.view, separators=(",", ":"), ensure_ascii=False) for user in shown[:limit])
        return Page(
            lines="\n".join(lines).encode(), next_after=shown[limit - 1].position if len(shown) > limit else None
        )

    async def check(self) -> None:
        """Return: memory is always available."""


class InMemoryArchive:
    """An ``Archive`` that lives as long as the process; ``InMemoryUsers`` fills it."""

    def __init__(self) -> None:
        # In order of position.
        self.by_id: dict[UUID, UserRecord] = {}
        self.by_mailbox: dict[str, UserRecord] = {}

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        users = list(self.by_id.values())
        begin = bisect_right(users, after or 0, key=_position)
        return users[begin : begin + limit]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        found = [self.by_mailbox.get(mailbox) for mailbox in mailboxes] + [self.by_id.get(user_id) for user_id in ids]
        return sorted({user for user in found if user is not None}, key=_position)
