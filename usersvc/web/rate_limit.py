"""How often one client may ask, counted before anything is done for it."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from aiohttp import web
from limits import RateLimitItem
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter

from usersvc.web.client_address import Address, Network, client_address
from usersvc.web.problems import RateLimited

MOST_CLIENTS = 100_000
"""Of whom the memory keeps count at once, some 20 MB; the oldest is forgotten first."""

Hit = tuple[bool, int, float]
"""What came of counting: whether it is admitted, how many more will be, and in how many seconds the window ends."""


class Counts(Protocol):
    """Counts of clients, each in a window of time that begins with the first."""

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:
        """Count a request of a client, of which a rate admits so many."""


class SharedCounts(Protocol):
    """Counts that several processes have in common, and that may be out of reach."""

    async def hit(self, rate: RateLimitItem, client: str) -> Hit | None:
        """See ``Counts.hit``; None when the count cannot be told just now, in bounded time."""


class OwnCounts:
    """Counts of this process alone."""

    def __init__(self, storage: Storage) -> None:
        self._limiter = FixedWindowRateLimiter(storage)

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:
        """See ``Counts.hit``."""
        admitted = await self._limiter.hit(rate, client)
        ends, left = await self._limiter.get_window_stats(rate, client)
        return admitted, left, ends - time.time()


class BoundedMemory(Storage):
    """Where this process counts: in bounded memory and with the same small effort for each request.

    The library's own looks through all counts with each request, which thousands of addresses make slow.
    """

    STORAGE_SCHEME = None

    def __init__(self, most: int = MOST_CLIENTS) -> None:
        """Make an empty one.

        Args:
            most: how many counts there are at once.
        """
        super().__init__()
        self._most = most
        # In the order in which they began, and so, since all last equally long, in which they end.
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def base_exceptions(self) -> type[Exception]:
        """What counts as a failure of the storage; nothing here does."""
        return ValueError

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count, in a window of ``expiry`` seconds that begins with the first; give the count."""
        now = time.monotonic()
        self._forget(now)
        count, ends = self._counts.get(key, (0, now + expiry))
        self._counts[key] = count + amount, ends
        return count + amount

    async def get(self, key: str) -> int:
        """The count of the window that has not ended yet."""
        self._forget(time.monotonic())
        return self._counts.get(key, (0, 0.0))[0]

    async def get_expiry(self, key: str) -> float:
        """When the window ends, as ``time.time`` tells it."""
        now = time.monotonic()
        return time.time() + self._counts.get(key, (0, now))[1] - now

    async def clear(self, key: str) -> None:
        """Forget one."""
        self._counts.pop(key, None)

    async def reset(self) -> int:
        """Forget all; give how many there were."""
        how_many = len(self._counts)
        self._counts.clear()
        return how_many

    async def check(self) -> bool:
        """Memory always answers."""
        return True

    def _forget(self, now: float) -> None:
        while self._counts:
            _, ends = next(iter(self._counts.values()))
            if ends > now and len(self._counts) < self._most:
                return
            self._counts.popitem(last=False)


class FallingBack:
    """Counts that several processes have in common, and this process's own whenever those are out of reach."""

    def __init__(self, shared: SharedCounts, own: Counts, on_fallback: Callable[[], None]) -> None:
        """Make one.

        Args:
            shared: what is asked first.
            own: they go on all the while, so that nobody begins anew when the others fail.
            on_fallback: called each time that the own count is the one that is told.
        """
        self._shared = shared
        self._own = own
        self._on_fallback = on_fallback

    async def hit(self, rate: RateLimitItem, client: str) -> Hit:
        """See ``Counts.hit``."""
        own = await self._own.hit(rate, client)
        shared = await self._shared.hit(rate, client)
        if shared is None:
            self._on_fallback()
            return own
        return shared


class RateLimit:
    """Admits each client so often; one that has an IPv6 address counts with its whole network of 64 bits.

    Such a network is what one subscriber is given at least (RFC 6177), and has more addresses than could be counted.
    """

    def __init__(self, rate: RateLimitItem, *, trusted_proxies: Sequence[Network] = (), counts: Counts) -> None:
        """Make one.

        Args:
            rate: how often in what time.
            trusted_proxies: whose ``X-Forwarded-For`` is believed.
            counts: where it is counted.
        """
        self._rate = rate
        self._trusted = trusted_proxies
        self._counts = counts
        self._policy = f'"register";q={rate.amount};w={rate.get_expiry()}'

    async def admit(self, request: web.Request) -> dict[str, str]:
        """Count a request.

        Returns:
            The headers that tell what is left (draft-ietf-httpapi-ratelimit-headers-10).

        Raises:
            RateLimited: the client has asked too often; with the same headers, and ``Retry-After``.
        """
        client = _counted(client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), self._trusted))
        admitted, left, ends = await self._counts.hit(self._rate, client)
        wait = max(1, math.ceil(ends))
        headers = {"RateLimit-Policy": self._policy, "RateLimit": f'"register";r={left};t={wait}'}
        if not admitted:
            raise RateLimited(headers | {"Retry-After": str(wait)})
        return headers


def _counted(address: Address | None) -> str:
    if address is None:
        return "unknown"
    return str(address) if isinstance(address, IPv4Address) else address.packed[:8].hex()
