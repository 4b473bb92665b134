"""The read side: showing and listing users."""

from collections.abc import AsyncGenerator
from functools import partial
from uuid import UUID

from usersvc.application.keyset import in_pages
from usersvc.application.ports import UserQueries
from usersvc.application.read_models import Order, Page, UserView
from usersvc.domain.email_address import EmailAddress


class UserQueryService:
    """Shows and lists users. Every method raises ``StorageUnavailable`` if the store does not respond.

    Lists are in ``order`` of registration, start after the position ``after`` (``Page.next_after``), have at most
    ``limit`` users, and only the one with the mailbox of ``email`` if that is given.
    """

    def __init__(self, queries: UserQueries) -> None:
        self._queries = queries

    async def show(self, user_id: UUID) -> UserView | None:
        """The user with this id; None if there is none."""
        return await self._queries.find(user_id)

    async def page(
        self, *, limit: int, order: Order = Order.ASC, after: int | None = None, email: EmailAddress | None = None
    ) -> Page:
        """One page of users (keyset pagination)."""
        mailbox = None if email is None else email.mailbox
        return await self._queries.page(limit=limit, order=order, after=after, mailbox=mailbox)

    async def stream(
        self,
        *,
        order: Order = Order.ASC,
        after: int | None = None,
        email: EmailAddress | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """All users as lines of JSON, up to ``BATCH`` of them at a time, read as by ``in_pages``."""
        read = partial(self._queries.page, order=order, mailbox=None if email is None else email.mailbox)
        async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
            yield page.lines + b"\n"
