"""Users in memory: for tests, and for a service whose users may be forgotten."""

from uuid import UUID

from usersvc.application.ports import Order, Page, UserView, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User


class InMemoryUsers:
    """A ``Users`` that lives as long as the process.

    Everything happens between two awaits of one event loop, so it needs no lock.
    """

    def __init__(self) -> None:
        self._users: list[User] = []
        self._position_of_mailbox: dict[str, int] = {}
        self._position_of_id: dict[UUID, int] = {}

    async def add(self, user: User) -> None:
        """See ``Users.add``."""
        if user.email.mailbox in self._position_of_mailbox:
            raise EmailAlreadyRegistered
        self._users.append(user)
        self._position_of_mailbox[user.email.mailbox] = self._position_of_id[user.id] = len(self._users)

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
            users=[view_of(self._users[position - 1]) for position in shown],
            next_after=shown[-1] if len(positions) > limit else None,
        )

    async def check(self) -> None:
        """See ``Users.check``; memory always answers."""
