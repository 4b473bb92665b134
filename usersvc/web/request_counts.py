"""Counts of requests by client, in fixed windows of time."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter

MAX_CLIENTS = 100_000
"""How many counts are kept in memory, about 20 MB; the oldest is dropped first."""

Hit = tuple[bool, int, float]
"""The result of counting a request: whether it is admitted, how many more are, and the seconds to the window's end."""


class Counts(Protocol):
    """Counts the requests of each client, in a window that starts with the first request."""

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:
        """Count a request of a client against a rate."""


class SharedCounts(Protocol):
    """Counts that several processes share, and that may be unavailable."""

    async def hit(self, rate: RateLimitItem, client: str) -> Hit | None:
        """As ``Counts.hit``; None, in bounded time, if the counts are unavailable."""


class OwnCounts:
    """Counts of this process alone."""

    def __init__(self, storage: Storage) -> None:
        self._limiter = FixedWindowRateLimiter(storage)

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:  # noqa: D102  # as in Counts
        admitted = await self._limiter.hit(rate, client)
        ends, left = await self._limiter.get_window_stats(rate, client)
        return admitted, left, ends - time.time()


class BoundedMemory(Storage):
    """A storage in bounded memory, with constant time for each request.

    The memory storage of the library scans all counts with each request.
    """

    STORAGE_SCHEME = None

    def __init__(self, max_clients: int = MAX_CLIENTS) -> None:
        super().__init__()
        self._max_clients = max_clients
        # In order of their start and, since all windows are equally long, of their end.
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def base_exceptions(self) -> type[Exception]:
        """The exceptions of the storage; there are none."""
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count, in a window of ``expiry`` seconds that starts with the first; return the count."""
        now = time.monotonic()
        self._drop_ended(now)
        if key not in self._counts and len(self._counts) >= self._max_clients:
            self._counts.popitem(last=False)
        count, ends = self._counts.get(key, (0, now + expiry))
        self._counts[key] = count + amount, ends
        return count + amount

    async def get(self, key: str) -> int:
        """The count in the current window."""
        self._drop_ended(time.monotonic())
        return self._counts.get(key, (0, 0.0))[0]

    async def get_expiry(self, key: str) -> float:
        """When the window ends, as ``time.time``."""
        now = time.monotonic()
        return time.time() + self._counts.get(key, (0, now))[1] - now

    async def clear(self, key: str) -> None:
        """Drop a count."""
        self._counts.pop(key, None)

    async def reset(self) -> int:
        """Drop all counts; return how many there were."""
        dropped = len(self._counts)
        self._counts.clear()
        return dropped

    async def check(self) -> bool:
        """Always available."""
        return True

    def _drop_ended(self, now: float) -> None:
        while self._counts:
            _, ends = next(iter(self._counts.values()))
            if ends > now:
                return
            self._counts.popitem(last=False)


class FallbackCounts:
    """Shared counts, or those of this process while the shared ones are unavailable."""

    def __init__(self, shared: SharedCounts, own: Counts, on_fallback: Callable[[], None]) -> None:
        """Combine counts.

        Args:
            shared: preferred.
            own: always counted too, so that a failure of the shared counts admits no additional requests.
            on_fallback: called each time that the own counts decide.
        """
        self._shared = shared
        self._own = own
        self._on_fallback = on_fallback

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:  # noqa: D102  # as in Counts
        own = await self._own.hit(rate, client)
        shared = await self._shared.hit(rate, client)
        if shared is None:
            self._on_fallback()
            return own
        return shared
