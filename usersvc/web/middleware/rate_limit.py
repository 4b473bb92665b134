"""How often one client may register, and how often it may send a wrong admin token."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Protocol

from aiohttp import web
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter

from usersvc.web.client_address import Network, client_address
from usersvc.web.problems import RateLimited

MOST_CLIENTS = 100_000
"""Of whom the memory keeps count at once, some 20 MB; the oldest is forgotten first."""

ADMIN_FAILURE_RATE = RateLimitItemPerMinute(10)
"""Wrong admin tokens of one client address."""

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

    async def admit(self, request: web.Request) -> dict[str, str]:
        """Count a request.

        Returns:
            The headers that tell what is left (draft-ietf-httpapi-ratelimit-headers-10).

        Raises:
            RateLimited: the client has asked too often; with the same headers, and ``Retry-After``.
        """
        admitted, left, ends = await self._counts.hit(self._rate, _client_key(request, self._trusted))
        headers = _headers("register", self._rate, left, ends)
        if not admitted:
            raise RateLimited(headers | {"Retry-After": str(_whole_seconds(ends))})
        return headers


class FailureLimit:
    """Limits how many credentials that are wrong one client address may send.

    Over the limit, credentials are refused before they are compared, also right ones. What decides is the count of this
    process: that check takes no time, and concurrent attempts cannot overtake it. From the shared counts, a process
    learns with each failure whether the limit was reached elsewhere.
    """

    def __init__(
        self,
        rate: RateLimitItem = ADMIN_FAILURE_RATE,
        *,
        trusted_proxies: Sequence[Network] = (),
        shared: SharedCounts | None = None,
    ) -> None:
        """Make one.

        Args:
            rate: how many failures in what time.
            trusted_proxies: whose ``X-Forwarded-For`` is believed.
            shared: counts that several processes have in common, if there are any.
        """
        self._rate = rate
        self._trusted = trusted_proxies
        self._shared = shared
        self._own = BoundedMemory()

    async def check(self, request: web.Request) -> None:
        """Return if the client has failures left.

        Raises:
            RateLimited: it has not; with ``Retry-After`` and the RateLimit headers.
        """
        client = _client_key(request, self._trusted)
        if await self._own.get(client) >= self._rate.amount:
            ends = await self._own.get_expiry(client) - time.time()
            headers = _headers("admin-token", self._rate, 0, ends)
            raise RateLimited(headers | {"Retry-After": str(_whole_seconds(ends))})

    async def count(self, request: web.Request) -> None:
        """Count a failure of the client."""
        client = _client_key(request, self._trusted)
        await self._own.incr(client, self._rate.get_expiry())
        if self._shared is None:
            return
        # The prefix keeps them apart from registrations at the same rate.
        hit = await self._shared.hit(self._rate, f"admin-token {client}")
        if hit is not None and hit[1] == 0:
            await self._own.incr(client, self._rate.get_expiry(), self._rate.amount)


def _headers(policy: str, rate: RateLimitItem, left: int, ends: float) -> dict[str, str]:
    """What is left, for the client (draft-ietf-httpapi-ratelimit-headers-10)."""
    return {
        "RateLimit-Policy": f'"{policy}";q={rate.amount};w={rate.get_expiry()}',
        "RateLimit": f'"{policy}";r={left};t={_whole_seconds(ends)}',
    }


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _client_key(request: web.Request, trusted: Sequence[Network]) -> str:
    """What a client is counted under: its IPv4 address, or the first 64 bits of its IPv6 address."""
    address = client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), trusted)
    if address is None:
        return "unknown"
    return str(address) if isinstance(address, IPv4Address) else address.packed[:8].hex()
