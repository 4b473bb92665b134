"""Readiness: whether the store responds."""

import asyncio

from usersvc.application.ports import Store

CHECK_INTERVAL = 1.0
"""Seconds from the start of one check to the start of the next."""


class Readiness:
    """Checks the store at most once in ``CHECK_INTERVAL``, since a check writes to the disk and any client may ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._check: asyncio.Future[None] | None = None
        self._check_started = 0.0

    async def check(self) -> None:
        """Return, or raise ``StorageUnavailable``. All callers within the interval share one check and its result."""
        now = asyncio.get_running_loop().time()
        if self._check is None or (self._check.done() and now - self._check_started >= CHECK_INTERVAL):
            self._check_started = now
            self._check = asyncio.ensure_future(self._store.check())
            # Otherwise asyncio logs the exception if all callers have been cancelled.
            self._check.add_done_callback(lambda check: check.cancelled() or check.exception())
        await asyncio.shield(self._check)
