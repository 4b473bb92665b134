"""Rate limits by client address, in windows of time that start with the first request of a client."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from usersvc.web.client_address import Network, client_address
from usersvc.web.middleware import metadata
from usersvc.web.middleware.errors import errors
from usersvc.web.problems import RequestRefused

if TYPE_CHECKING:
    from limits import RateLimitItem  # slow to import, and not needed without a limit

MAX_CLIENTS = 100_000
"""How many counts a limit keeps in memory, about 20 MB; the oldest is dropped first."""

Hit = tuple[bool, int, float]
"""The result of counting: whether the request is admitted, how many more are, and the seconds to the window's end."""


class SharedCounts(Protocol):
    """Counts that several processes share, and that may be unavailable."""

    async def hit(self, rate: "RateLimitItem", client: str) -> Hit | None:
        """Count a request of a client against a rate; None, in bounded time, if the counts are unavailable."""


def rate_limit(limits: Mapping[str, "RateLimit"]) -> Middleware:
    """Limit the requests to each handler whose metadata name a limit (``rate``), before the body is read."""

    @web.middleware
    async def limit_rate(request: web.Request, handler: Handler) -> web.StreamResponse:
        limit = limits.get(metadata(handler).get("rate", ""))
        if limit is None:
            return await handler(request)
        headers = await limit.admit(request)
        # The headers belong on the response to a failure, too.
        response = await errors(request, handler)
        response.headers.update(headers)
        return response

    return limit_rate


class RateLimit:
    """Limits each client address; IPv6 addresses by their /64 network, the least that a subscriber gets (RFC 6177).

    Args:
        policy: its name in the RateLimit headers.
        rate: how many requests in what time.
        trusted_proxies: whose ``X-Forwarded-For`` is used.
        shared: counts that are used while they are available.
        on_fallback: called each time that they are not.
    """

    def __init__(
        self,
        policy: str,
        rate: "RateLimitItem",
        *,
        trusted_proxies: Sequence[Network] = (),
        shared: SharedCounts | None = None,
        on_fallback: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy, self._rate, self._trusted = policy, rate, trusted_proxies
        self._shared, self._on_fallback = shared, on_fallback
        self._own = OwnCounts(rate.get_expiry())

    async def admit(self, request: web.Request) -> dict[str, str]:
        """Count a request; return the headers that state what is left (draft-ietf-httpapi-ratelimit-headers-10).

        Raises:
            RequestRefused: the client has sent too many; with the same headers, and ``Retry-After``.
        """
        admitted, left, ends = await self._hit(self._client(request))
        if not admitted:
            raise self._refusal(ends)
        return self._headers(left, ends)

    def check(self, request: web.Request) -> None:
        """Compare what ``count`` counted in this process with the limit; concurrent attempts cannot overtake that.

        Raises:
            RequestRefused: the client has reached it.
        """
        if not self._own:
            return
        count, ends = self._own.get(self._client(request))
        if count >= self._rate.amount:
            raise self._refusal(ends)

    async def count(self, request: web.Request) -> None:
        """Count a failure of the client, and learn whether it has reached the limit in other processes."""
        client = self._client(request)
        _, left, _ = await self._hit(client)
        if left == 0:
            self._own.add(client, self._rate.amount)

    async def _hit(self, client: str) -> Hit:
        # Always counted here too, so that a failure of the shared counts admits no additional requests.
        count, ends = self._own.add(client)
        if self._shared is not None:
            # The name keeps limits of the same rate apart.
            shared = await self._shared.hit(self._rate, f"{self._policy} {client}")
            if shared is not None:
                return shared
            self._on_fallback()
        return count <= self._rate.amount, max(0, self._rate.amount - count), ends

    def _client(self, request: web.Request) -> str:
        """The IPv4 address of the client, or the first 64 bits of its IPv6 address."""
        address = client_address(request, self._trusted)
        if address is None:
            return "unknown"
        return str(address) if isinstance(address, IPv4Address) else address.packed[:8].hex()

    def _refusal(self, ends: float) -> RequestRefused:
        wait = max(1, math.ceil(ends))
        text = f"Too many requests from this address; retry in {wait} s."
        return RequestRefused("rate-limited", text, self._headers(0, ends) | {"Retry-After": str(wait)})

    def _headers(self, left: int, ends: float) -> dict[str, str]:
        return {
            "RateLimit-Policy": f'"{self._policy}";q={self._rate.amount};w={self._rate.get_expiry()}',
            "RateLimit": f'"{self._policy}";r={left};t={max(1, math.ceil(ends))}',
        }


class OwnCounts:
    """Counts of this process in windows of some seconds; the memory storage of ``limits`` is unbounded, and slow."""

    def __init__(self, window: float) -> None:
        self._window = window
        # In order of their start and, since all windows are equally long, of their end.
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, client: str, amount: int = 1) -> tuple[int, float]:
        """Count for a client; return its count, and the seconds to the end of its window."""
        now = time.monotonic()
        count, ends = self._find(client, now)
        if client not in self._counts and len(self._counts) >= MAX_CLIENTS:
            self._counts.popitem(last=False)
        self._counts[client] = count + amount, ends
        return count + amount, ends - now

    def get(self, client: str) -> tuple[int, float]:
        """As ``add``, without counting."""
        now = time.monotonic()
        count, ends = self._find(client, now)
        return count, ends - now

    def _find(self, client: str, now: float) -> tuple[int, float]:
        while self._counts and next(iter(self._counts.values()))[1] <= now:
            self._counts.popitem(last=False)
        return self._counts.get(client, (0, now + self._window))
