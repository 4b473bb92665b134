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
    """Yield a collection page by page, without empty pages.

    Each page is a query of its own: between two, a slow consumer holds no transaction, connection or memory.

    Args:
        read: reads at most ``limit`` items whose position is greater than ``after`` (None: from the first).
        next_after: the position after which the next page begins; None if the page was the last.
        after: start after this position.
        limit: the maximum number of items; None for all.

    Raises:
        StorageUnavailable: a page cannot be read, possibly not the first.
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
