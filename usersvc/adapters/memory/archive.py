"""The users in memory, and their export."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from usersvc.application.read_models import UserRecord


class UserTable:
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


class InMemoryArchive:
    """An ``Archive`` of what an ``InMemoryUsers`` holds."""

    def __init__(self, people: UserTable) -> None:
        self._people = people

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        begin = 0 if after is None else bisect_right(self._people.positions, after)
        return [self._people.users[position] for position in self._people.positions[begin : begin + limit]]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        found = {self._people.position_of_mailbox.get(mailbox) for mailbox in mailboxes}
        found |= {self._people.position_of_id.get(user_id) for user_id in ids}
        return [self._people.users[position] for position in sorted(each for each in found if each is not None)]

    async def count(self) -> int:
        return len(self._people.users)
