"""Delivers the mails whose events are in the outbox, independently of the requests that stored them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from random import random
from typing import Any, Self

from usersvc.application.clock import utc_now
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.ports import Notifier, Outbox
from usersvc.application.request_context import request_context

log = logging.getLogger(__name__)

FIRST_DELAY, MAX_DELAY = timedelta(seconds=5), timedelta(hours=1)
"""The delay before the second attempt and the longest delay; each delay is twice the one before."""
MAX_ATTEMPTS, MAX_AGE = 60, timedelta(days=1)
"""An entry is dead-lettered after a failed attempt once both are reached: 25 to 50 hours of delays. The age alone would
also count the time in which the service is down; the attempts alone would also count crashes."""
DELIVERY_TIMEOUT, LEASE = timedelta(seconds=60), timedelta(seconds=90)
"""Of one attempt; the lease is longer, so that no two processes send the same mail at the same time."""
CONCURRENCY, SLOW_AFTER = 8, timedelta(seconds=10)
"""The number of concurrent deliveries, and the time after which a delivery no longer counts, to not block others. So at
most ``CONCURRENCY * DELIVERY_TIMEOUT / SLOW_AFTER`` (48) run, which mail servers accept from one client."""
POLL_INTERVAL = timedelta(seconds=30)
"""Entries of other processes and changes of the system clock are noticed after at most this time."""
STOP_TIMEOUT = timedelta(seconds=3)
"""How long a stop waits for running deliveries. Cancelled ones are sent again later (at least once)."""
MAX_REASON_LENGTH = 500
"""Characters of an error message that are stored."""


def retry_delay(attempt: int, jitter: float) -> timedelta:
    """The delay after a failed attempt (1 for the first); ``jitter``, from 0 to 1, subtracts up to half of it."""
    # The exponent is limited because a timedelta can overflow.
    full: timedelta = min(FIRST_DELAY * 2 ** min(attempt - 1, 20), MAX_DELAY)
    return full * (1 - jitter / 2)


class MailDelivery:
    """Sends the mail of each outbox entry at least once; an asynchronous context manager that can be used once."""

    def __init__(self, outbox: Outbox, notifier: Notifier, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._outbox, self._notifier, self._clock = outbox, notifier, clock
        self._wake_up = asyncio.Event()
        # The deliveries and the loop that starts them, and those of the deliveries that occupy a slot.
        self._running: set[asyncio.Task[None]] = set()
        self._occupying: set[asyncio.Task[None]] = set()
        self._stopping = False

    def wake(self) -> None:
        """Check the outbox now, because an entry was added."""
        self._wake_up.set()

    async def __aenter__(self) -> Self:
        self._start(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Lease no more entries, and wait for running deliveries, for at most ``STOP_TIMEOUT``."""
        self._stopping = True
        self.wake()
        try:
            async with asyncio.timeout(STOP_TIMEOUT.total_seconds()):
                while self._running:
                    await asyncio.wait(self._running)
        except TimeoutError:
            log.warning("cancelling %d deliveries at shutdown; they are retried later", len(self._running))
        finally:
            # Repeated because asyncio.wait_for can swallow a cancellation up to Python 3.11 (python/cpython#86296).
            while self._running:
                for task in self._running:
                    task.cancel()
                await asyncio.wait(self._running, timeout=0.1)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _work(self) -> None:
        while not self._stopping:
            self._wake_up.clear()
            pause = FIRST_DELAY
            try:
                pause = await self._start_due()
            except StorageUnavailable as error:
                log.warning("cannot read the outbox, retrying: %s", error)
            except Exception:
                # Only a stop may end this loop: otherwise no mail would be sent until a restart.
                log.exception("unexpected error while reading the outbox, retrying")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause.total_seconds()):
                    await self._wake_up.wait()

    async def _start_due(self) -> timedelta:
        """Start a delivery for each due entry while slots are free; return how long to sleep unless woken up."""
        slots = CONCURRENCY - len(self._occupying)
        if slots:
            now = self._clock()
            until = now + LEASE
            # No entry is rescheduled by more than MAX_DELAY, so a later time comes from a wrong clock.
            entries = await self._outbox.lease(now=now, until=until, limit=slots, latest=until + MAX_DELAY)
            for entry in entries:
                self._occupy_slot(self._start(self._deliver(entry)))
            slots -= len(entries)
        if not slots:
            # A slot that becomes free wakes this up.
            return POLL_INTERVAL
        due_at = await self._outbox.next_due()
        pause = POLL_INTERVAL if due_at is None else due_at - self._clock()
        return max(timedelta(milliseconds=1), min(pause, POLL_INTERVAL))

    def _occupy_slot(self, delivery: asyncio.Task[None]) -> None:
        def release(_: object = None) -> None:
            self._occupying.discard(delivery)
            self.wake()

        self._occupying.add(delivery)
        slow = asyncio.get_running_loop().call_later(SLOW_AFTER.total_seconds(), release)
        delivery.add_done_callback(release)
        delivery.add_done_callback(lambda _: slow.cancel())

    async def _deliver(self, entry: OutboxEntry) -> None:
        request_context.set(entry.context)  # only in the context of this task
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT.total_seconds()):
                await self._notifier.welcome(entry.event)
        except Exception as error:
            await self._report(self._failed(entry, error), entry)
        else:
            await self._report(partial(self._outbox.delivered, entry), entry)

    def _failed(self, entry: OutboxEntry, error: Exception) -> Callable[[], Awaitable[None]]:
        """Log a failed attempt; return the call that stores it."""
        kind, user, attempt, now = type(error).__name__, entry.event.user_id, entry.attempts, self._clock()
        is_final = isinstance(error, Undeliverable)
        reason = str(error) if is_final else f"{kind}: {error}".removesuffix(": ")
        # Fit for storage and terminals: server replies can contain line breaks, escapes and invalid UTF-8.
        reason = "".join(char if char.isprintable() else " " for char in reason[:MAX_REASON_LENGTH])
        if is_final or (attempt >= MAX_ATTEMPTS and now - entry.event.occurred_at >= MAX_AGE):
            message = "no welcome mail to user %s: outbox entry %d is dead-lettered after attempt %d"
            log.error(message, user, entry.id, attempt)
            return partial(self._outbox.dead_letter, entry, reason=reason)
        delay = retry_delay(attempt, random())  # noqa: S311  # not a secret
        # Only the type of the error, as its message may contain the address.
        log.warning("attempt %d to welcome user %s failed (%s); next in %d s", attempt, user, kind, delay.seconds)
        return partial(self._outbox.reschedule, entry, due_at=now + delay, reason=reason)

    async def _report(self, report: Callable[[], Awaitable[None]], entry: OutboxEntry) -> None:
        """Store a result, and retry while the lease lasts: an entry without a stored result is sent again."""
        while True:
            try:
                return await report()
            except StorageUnavailable as error:
                if entry.due_at is None or self._clock() + FIRST_DELAY >= entry.due_at:
                    log.warning("cannot store the result of outbox entry %d: %s", entry.id, error)
                    return None
            except Exception as error:
                # Only the type, as the message may contain the address.
                log.error("unexpected error with outbox entry %d: %s", entry.id, type(error).__name__)
                return None
            await asyncio.sleep(FIRST_DELAY.total_seconds())
