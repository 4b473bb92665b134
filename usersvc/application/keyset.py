"""Reads whole collections page by page (keyset pagination)."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

BATCH = 1000
"""Items on a page: about a millisecond of the store's time, and 150 kB of JSON."""

PageT = TypeVar("PageT")


async def in_pages(
    read: Callable[..., Awaitable[PageT]],
    next_after: Callable[[PageT], int | None],
    *,
    after: int | None = None,
    limit: int | None = None,
) -> AsyncGenerator[PageT, None]:
    """Yield at most ``limit`` items (None: all) after position ``after`` (None: from the first) in pages, none empty.

    Each page is a query of its own: between two, a slow consumer holds no transaction, connection or memory.
    ``read`` is as ``UserQueries.page`` and raises the same; ``next_after`` returns None for the last page.
    """
    while limit is None or limit > 0:
        size = BATCH if limit is None else min(BATCH, limit)
        page = await read(after=after, limit=size)
        if page:
            yield page
        after = next_after(page)
        if after is None:
            return
        limit = None if limit is None else limit - size
