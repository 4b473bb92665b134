"""The users in memory, as they are stored."""

from bisect import bisect_right
from collections.abc import Sequence
from uuid import UUID

from usersvc.application.read_models import UserRecord


class InMemoryArchive:
    """An ``Archive`` that lives as long as the process; ``InMemoryUsers`` fills it."""

    def __init__(self) -> None:
        # In order of position.
        self.by_id: dict[UUID, UserRecord] = {}
        self.by_mailbox: dict[str, UserRecord] = {}

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        users = list(self.by_id.values())
        begin = bisect_right(users, after or 0, key=position_of)
        return users[begin : begin + limit]

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        found = [self.by_mailbox.get(mailbox) for mailbox in mailboxes] + [self.by_id.get(user_id) for user_id in ids]
        return sorted({user for user in found if user is not None}, key=position_of)


def position_of(user: UserRecord) -> int:
    """The key for searching and sorting."""
    return user.position
