"""The users in memory, and their export."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from usersvc.application.read_models import UserRecord


class UserTable:
    """The users of an ``InMemoryUsers``, their indexes and their idempotency keys."""

    def __init__(self) -> None:
        self.last_position = 0
        # Both in order of position; the list allows binary search.
        self.users: dict[int, UserRecord] = {}
        self.positions: list[int] = []
        self.position_of_mailbox: dict[str, int] = {}
        self.position_of_id: dict[UUID, int] = {}
        # User and time of use by the digest of the key, in order of use and therefore of expiry.
        self.keys: dict[str, tuple[UUID, datetime]] = {}

    def put(self, user: UserRecord) -> None:
        """Append a user."""
        self.last_position = user.position
        self.positions.append(user.position)
        self.users[user.position] = user
        self.position_of_mailbox[user.mailbox] = self.position_of_id[user.id] = user.position

    def remove(self, position: int) -> UUID:
        """Remove a user with the keys; return the id."""
        user = self.users.pop(position)
        del self.positions[bisect_left(self.positions, position)]
        del self.position_of_mailbox[user.mailbox], self.position_of_id[user.id]
        self.keys = {digest: key for digest, key in self.keys.items() if key[0] != user.id}
        return user.id


class InMemoryArchive:
    """An ``Archive`` of an ``InMemoryUsers``."""

    def __init__(self, table: UserTable) -> None:
        self._table = table

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        begin = 0 if after is None else bisect_right(self._table.positions, after)
        return [self._table.users[position] for position in self._table.positions[begin : begin + limit]]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        found = {self._table.position_of_mailbox.get(mailbox) for mailbox in mailboxes}
        found |= {self._table.position_of_id.get(user_id) for user_id in ids}
        return [self._table.users[position] for position in sorted(each for each in found if each is not None)]

    async def count(self) -> int:
        return len(self._table.users)
