"""Users in memory: for tests, and for a service that need not keep its users."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from usersvc.adapters.memory.archive import InMemoryArchive, UserTable
from usersvc.adapters.memory.outbox import InMemoryOutbox
from usersvc.application.clock import timestamp
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.read_models import Order, Page, UserRecord, UserView
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    No method awaits anything, so none needs a lock.
    """

    def __init__(self) -> None:
        self._table = UserTable()
        self.outbox = InMemoryOutbox()
        self.archive = InMemoryArchive(self._table)

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        table = self._table
        self._delete_expired_keys(user.registered_at)
        if key is not None and key.digest in table.keys:
            raise IdempotencyKeyUsed
        if user.email.mailbox in table.position_of_mailbox:
            raise EmailAlreadyRegistered
        self._put(user)
        if key is not None:
            table.keys[key.digest] = user.id, user.registered_at

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        table = self._table
        stored = []
        for user in users:
            is_free = user.email.mailbox not in table.position_of_mailbox and user.id not in table.position_of_id
            if is_free:
                self._put(user)
            stored.append(is_free)
        return stored

    def _put(self, user: User) -> None:
        self._table.put(
            UserRecord(
                position=self._table.last_position + 1,
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
        position = self._table.position_of_id.get(user_id)
        if position is None:
            return False
        self.outbox.remove_user(self._table.remove(position))
        return True

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        used = self._table.keys.get(key.digest)
        if used is None or used[1] + KEY_LIFETIME <= at:
            return None
        user = self._table.users[self._table.position_of_id[used[0]]]
        return EarlierRegistration(_view(user), user.password_hash)

    def _delete_expired_keys(self, at: datetime) -> None:
        keys = self._table.keys
        while keys:
            digest, (_, used_at) = next(iter(keys.items()))
            if used_at + KEY_LIFETIME > at:
                return
            del keys[digest]

    async def find(self, user_id: UUID) -> UserView | None:
        position = self._table.position_of_id.get(user_id)
        return None if position is None else _view(self._table.users[position])

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        positions = self._table.positions
        if mailbox is not None:
            position = self._table.position_of_mailbox.get(mailbox)
            positions = [] if position is None else [position]
        # One row more than requested shows whether there is a next page.
        if order is Order.ASC:
            begin = 0 if after is None else bisect_right(positions, after)
            shown = positions[begin : begin + limit + 1]
        else:
            end = len(positions) if after is None else bisect_left(positions, after)
            shown = positions[max(0, end - limit - 1) : end][::-1]
        return Page(
            lines=b"\n".join(
                json.dumps(_view(self._table.users[position]), separators=(",", ":"), ensure_ascii=False).encode()
                for position in shown[:limit]
            ),
            next_after=shown[limit - 1] if len(shown) > limit else None,
        )

    async def check(self) -> None:
        """Return: memory is always available."""


def _view(user: UserRecord) -> UserView:
    return {
        "id": str(user.id),
        "email": user.email,
        "age": user.age,
        "registered_at": timestamp(user.registered_at),
    }
