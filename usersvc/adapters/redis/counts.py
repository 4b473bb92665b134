"""Counts of requests in Redis, which all instances of the service share."""

import asyncio
import hashlib
import logging
import time
from typing import Self

from limits import RateLimitItem
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

TIMEOUT, PAUSE = 0.25, 5.0
"""Seconds of a call, with waiting for a connection; and for which Redis is not used after two failures in a row."""
CONNECTIONS = 16
"""The maximum number of connections of a process."""


class RedisCounts:
    """A ``SharedCounts`` in Redis; an asynchronous context manager that closes the connections.

    After two failures in a row ``hit`` returns None at once, but one request every ``PAUSE`` seconds tries again.
    """

    def __init__(self, url: str, *, secret: bytes | None = None) -> None:
        """Create the counts, without a connection.

        ``secret`` keys the digests of client addresses; without it, an address can be found by trying all of them.
        """
        # Retries of the client would take longer than TIMEOUT.
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=TIMEOUT, retry=Retry(NoBackoff(), 0)
        )
        self._redis = Redis(connection_pool=pool)
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="usersvc", connection_pool=pool)  # type: ignore[arg-type]  # options are passed on unchanged
        self._limiter = FixedWindowRateLimiter(storage)
        self._digest_key = hashlib.sha512(b"usersvc counts" + secret).digest() if secret else b""
        # None after a success, and while Redis is available.
        self._failed_at: float | None = None
        self._retry_at: float | None = None

    async def __aenter__(self) -> Self:
        """Send a ping, so that an unavailable Redis is logged at the start."""
        try:
            async with asyncio.timeout(TIMEOUT):
                await self._redis.ping()
        except (RedisError, OSError) as error:
            self._suspend(error)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self._redis.connection_pool.disconnect()

    async def hit(self, rate: RateLimitItem, client: str) -> tuple[bool, int, float] | None:
        """Count a request of a client; see ``SharedCounts``. Redis gets only a digest of the client."""
        now = time.monotonic()
        if self._retry_at is not None:
            if now < self._retry_at:
                return None
            # Concurrent requests do not try as well.
            self._retry_at = now + PAUSE
        digest = hashlib.blake2b(client.encode(), key=self._digest_key, digest_size=16).hexdigest()
        try:
            async with asyncio.timeout(TIMEOUT):
                admitted = await self._limiter.hit(rate, digest)
                ends, left = await self._limiter.get_window_stats(rate, digest)
        except (RedisError, OSError) as error:
            # Concurrent requests see the same failure; it counts once.
            if self._retry_at is None and self._failed_at is not None and now > self._failed_at:
                self._suspend(error)
            self._failed_at = time.monotonic()
            return None
        self._failed_at = None
        if self._retry_at is not None:
            self._retry_at = None
            log.info("Redis responds again: all processes count together")
        return admitted, left, ends - time.time()

    def _suspend(self, error: Exception) -> None:
        self._retry_at = time.monotonic() + PAUSE
        # Only the type: the message may contain an address or a name.
        log.warning("Redis does not respond (%s): each process counts by itself", type(error).__name__)
