"""The read side: showing and listing users."""

from collections.abc import AsyncGenerator
from functools import partial
from uuid import UUID

from usersvc.application.keyset import in_pages
from usersvc.application.ports import UserQueries
from usersvc.application.read_models import Order, Page, UserView
from usersvc.domain.email_address import EmailAddress


class UserQueryService:
    """Shows and lists users. Every method raises ``StorageUnavailable`` if the store does not respond."""

    def __init__(self, queries: UserQueries) -> None:
        self._queries = queries

    async def show(self, user_id: UUID) -> UserView | None:
        """The user with this id; None if there is none."""
        return await self._queries.find(user_id)

    async def page(
        self, *, limit: int, order: Order = Order.ASC, after: int | None = None, email: EmailAddress | None = None
    ) -> Page:
        """One page of users in order of registration (keyset pagination).

        Args:
            limit: the maximum number of users, at least 1.
            order: the oldest or the newest first.
            after: ``next_after`` of the previous page.
            email: only the user with this mailbox.
        """
        return await self._queries.page(
            limit=limit, order=order, after=after, mailbox=None if email is None else email.mailbox
        )

    async def stream(
        self,
        *,
        order: Order = Order.ASC,
        after: int | None = None,
        email: EmailAddress | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """All users as lines of JSON, up to ``BATCH`` of them at a time.

        As with pages, users who are added or removed meanwhile cause no other user to be repeated or skipped. A slow
        consumer holds no resources of the store between two batches.

        Args:
            order: the oldest or the newest first.
            after: start after this position.
            email: only the user with this mailbox.
            limit: the maximum number of users; None for all.
        """
        read = partial(self._queries.page, order=order, mailbox=None if email is None else email.mailbox)
        async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
            yield page.lines + b"\n"
