"""Notifications of outbox entries, by LISTEN and NOTIFY."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.adapters.postgres.pool import PostgresPool
from usersvc.application.errors import StorageUnavailable

log = logging.getLogger(__name__)

CHANNEL = "usersvc_outbox"
"""The LISTEN/NOTIFY channel on which processes announce outbox entries that are due."""

DEBOUNCE, MAX_SILENCE = 0.1, 15.0
"""Seconds during which notifications are combined, so that not every registration makes every process query the
outbox; and seconds without any after which a listener checks its connection."""

RECONNECT_PAUSE = 1.0
"""Seconds between two attempts to connect. Nothing is lost meanwhile: the outbox is polled as well."""


@asynccontextmanager
async def listening(pool: PostgresPool, notify: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``notify`` after notifications on ``CHANNEL``, and whenever some may have been missed."""
    task = asyncio.create_task(_listen(pool, notify))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _listen(pool: PostgresPool, notify: Callable[[], None]) -> None:
    is_logged, received = False, asyncio.Event()
    while True:
        try:
            async with pool.session() as connection:
                connection.add_termination_listener(lambda *_: received.set())
                async with asyncio.timeout(postgres_pool.RESPONSE_TIMEOUT):
                    await connection.add_listener(CHANNEL, lambda *_: received.set())
                is_logged = False
                while True:
                    notify()
                    received.clear()
                    await asyncio.sleep(DEBOUNCE)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(received.wait(), MAX_SILENCE)
                    # It fails if the connection is lost, which looks like silence.
                    await connection.execute("SELECT 1", timeout=postgres_pool.RESPONSE_TIMEOUT)
        except StorageUnavailable as error:
            if not is_logged:
                log.warning("cannot listen for notifications, retrying: %s", error)
            is_logged = True
        await asyncio.sleep(RECONNECT_PAUSE)
