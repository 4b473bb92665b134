"""Rate limits: of requests to some handlers, and of wrong admin tokens."""

import math
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from limits import RateLimitItem, RateLimitItemPerMinute

from usersvc.web.client_address import Network, client_address
from usersvc.web.handler_metadata import metadata
from usersvc.web.middleware.errors import errors
from usersvc.web.problems import RateLimited
from usersvc.web.request_counts import BoundedMemory, Counts, SharedCounts

ADMIN_FAILURE_RATE = RateLimitItemPerMinute(10)
"""Wrong admin tokens of one client address."""


def rate_limit(limits: Mapping[str, "RateLimit"]) -> Middleware:
    """Limit the requests to each handler whose metadata name a limit (``rate``), before the body is read.

    The headers that state the limit are on every response, also on that to a failure behind the limit.
    """

    @web.middleware
    async def limit_rate(request: web.Request, handler: Handler) -> web.StreamResponse:
        limit = limits.get(metadata(request).get("rate", ""))
        if limit is None:
            return await handler(request)
        headers = await limit.admit(request)
        response = await errors(request, handler)
        response.headers.update(headers)
        return response

    return limit_rate


class RateLimit:
    """Limits the registrations of each client address; IPv6 addresses are counted by their /64 network.

    A subscriber gets at least such a network (RFC 6177), which has more addresses than can be counted.
    """

    def __init__(self, rate: RateLimitItem, *, trusted_proxies: Sequence[Network] = (), counts: Counts) -> None:
        """Make a limit.

        Args:
            rate: how many requests in what time.
            trusted_proxies: whose ``X-Forwarded-For`` is used.
            counts: counts the requests.
        """
        self._rate = rate
        self._trusted = trusted_proxies
        self._counts = counts

    async def admit(self, request: web.Request) -> dict[str, str]:
        """Count a request.

        Returns:
            The headers that state what is left (draft-ietf-httpapi-ratelimit-headers-10).

        Raises:
            RateLimited: the client has sent too many; with the same headers, and ``Retry-After``.
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
        """Make a limit.

        Args:
            rate: how many failures in what time.
            trusted_proxies: whose ``X-Forwarded-For`` is used.
            shared: counts that several processes share, if there are any.
        """
        self._rate = rate
        self._trusted = trusted_proxies
        self._shared = shared
        self._own = BoundedMemory()

    async def check(self, request: web.Request) -> None:
        """Return if the client has failures left.

        Raises:
            RateLimited: it does not; with ``Retry-After`` and the RateLimit headers.
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
    """The headers that state what is left."""
    return {
        "RateLimit-Policy": f'"{policy}";q={rate.amount};w={rate.get_expiry()}',
        "RateLimit": f'"{policy}";r={left};t={_whole_seconds(ends)}',
    }


def _whole_seconds(seconds: float) -> int:
    return max(1, math.ceil(seconds))


def _client_key(request: web.Request, trusted: Sequence[Network]) -> str:
    """The IPv4 address of the client, or the first 64 bits of its IPv6 address."""
    address = client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), trusted)
    if address is None:
        return "unknown"
    return str(address) if isinstance(address, IPv4Address) else address.packed[:8].hex()
