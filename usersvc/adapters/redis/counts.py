"""Counts in Redis, which all instances of the service share; it is left alone while it is away."""

import asyncio
import hashlib
import logging
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from limits import RateLimitItem
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

TIMEOUT = 0.25
"""How long an answer may take, in seconds, connecting and waiting for a connection included."""
PAUSE = 5.0
"""How long Redis is left alone after it has not answered twice in a row, in seconds."""
CONNECTIONS = 16
"""At most, in each process."""


class RedisCounts:
    """Counts that outlive this process and that others see; an asynchronous context.

    When Redis fails or is slow, ``hit`` has no answer. When that happens twice in a row, one line says so, and ``hit``
    has none, at once, until Redis is back; one request every ``PAUSE`` seconds finds that out.
    """

    def __init__(
        self, url: str, *, secret: bytes | None = None, timeout: float = TIMEOUT, pause: float = PAUSE
    ) -> None:
        """Make one.

        Args:
            url: ``redis://`` or ``rediss://``, with user, password and number of the database as needed.
            secret: keys the digests that stand for what is counted. Without it, whoever reads Redis could find out an
                address by trying all that there are.
            timeout: how long an answer may take, in seconds.
            pause: how long Redis is left alone after it has not answered twice in a row, in seconds.
        """
        # Its own retries would take longer than anybody here waits.
        pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=timeout, retry=Retry(NoBackoff(), 0)
        )
        self._redis = Redis(connection_pool=pool)
        storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix="usersvc", connection_pool=pool)  # type: ignore[arg-type]  # options are handed on as they are
        self._limiter = FixedWindowRateLimiter(storage)
        self._digest_key = hashlib.sha512(b"usersvc counts" + secret).digest() if secret else b""
        self._timeout = timeout
        self._pause = pause
        self._away = False
        self._failed_at: float | None = None
        """When it has failed last, if it has not answered since."""
        self._try_again_at = 0.0
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Ask Redis once, so that the start tells whether it answers."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._redis.connection_pool.disconnect)
            try:
                async with asyncio.timeout(self._timeout):
                    await self._redis.ping()
            except (RedisError, OSError) as error:
                self._is_away(error)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._stack.aclose()

    async def hit(self, rate: RateLimitItem, client: str) -> tuple[bool, int, float] | None:
        """Count, in a window that begins with the first of a client.

        Args:
            rate: how many are admitted in what time.
            client: who is counted; Redis sees only a digest of it.

        Returns:
            Whether it is admitted, how many more will be, and in how many seconds the window ends; None when Redis does
            not answer.
        """
        now = time.monotonic()
        if self._away:
            if now < self._try_again_at:
                return None
            # Others leave it alone while this one tries.
            self._try_again_at = now + self._pause
        digest = hashlib.blake2b(client.encode(), key=self._digest_key, digest_size=16).hexdigest()
        try:
            async with asyncio.timeout(self._timeout):
                admitted = await self._limiter.hit(rate, digest)
                ends, left = await self._limiter.get_window_stats(rate, digest)
        except (RedisError, OSError) as error:
            # Those who were waiting at the same moment have seen the same failure: it is one.
            if self._away or (self._failed_at is not None and now > self._failed_at):
                self._is_away(error)
            self._failed_at = time.monotonic()
            return None
        self._failed_at = None
        if self._away:
            self._away = False
            log.info("Redis answers again: all processes count together")
        return admitted, left, ends - time.time()

    def _is_away(self, error: Exception) -> None:
        self._try_again_at = time.monotonic() + self._pause
        if not self._away:
            self._away = True
            # By kind, since its text may hold an address or a name.
            log.warning("Redis does not answer (%s): each process counts by itself", type(error).__name__)
