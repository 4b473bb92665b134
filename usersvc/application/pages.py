"""Everybody, read a page at a time: what a store does that has no better way."""

from collections.abc import AsyncGenerator
from typing import Protocol

from usersvc.application.ports import Order, Page

BATCH = 1000
"""Users who are read at once for a list of everybody: a millisecond of the store's time, and some 150 kB."""


class ReadPage(Protocol):
    """``Users.page`` of some store."""

    async def __call__(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        """See ``Users.page``."""
        ...


async def in_pages(
    read: ReadPage, *, order: Order, after: int | None, mailbox: str | None, limit: int | None
) -> AsyncGenerator[bytes, None]:
    """See ``Users.batches``: each batch is a page.

    It is read by itself and only when it is asked for: nothing is kept open or in memory for a slow reader, and others
    get their turn between two.
    """
    begin, left = after, limit
    while left is None or left > 0:
        size = BATCH if left is None else min(BATCH, left)
        page = await read(limit=size, order=order, after=begin, mailbox=mailbox)
        if page.lines:
            yield page.lines + b"\n"
        if page.next_after is None:
            return
        begin = page.next_after
        left = None if left is None else left - size
