"""Delivers the mails whose events are in the outbox, independently of the requests that stored them."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Self

from usersvc.application.clock import utc_now
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.ports import Notifier, Outbox
from usersvc.application.request_context import request_context

log = logging.getLogger(__name__)

FIRST_DELAY, MAX_DELAY = timedelta(seconds=5), timedelta(hours=1)
"""The delay before the second attempt and the longest delay; each delay is twice the one before."""
MAX_ATTEMPTS, MAX_AGE = 60, timedelta(days=1)
"""An entry is dead-lettered after a failed attempt once both are reached.

The delays of all attempts add up to 25 to 50 hours (RFC 5321, section 4.5.4.1, recommends four to five days to relays).
The age alone would also count the time in which the service is down; the attempts alone would also count crashes.
"""
DELIVERY_TIMEOUT = timedelta(seconds=60)
"""Of one attempt."""
LEASE = timedelta(seconds=90)
"""Longer than an attempt, so that no two processes send the same mail at the same time."""
CONCURRENCY, SLOW_AFTER = 8, timedelta(seconds=10)
"""The number of concurrent deliveries, and the time after which a delivery no longer occupies a slot.

So hanging deliveries do not block others, and at most ``CONCURRENCY * DELIVERY_TIMEOUT / SLOW_AFTER`` (48) run at once,
which mail servers accept from one client.
"""
POLL_INTERVAL = timedelta(seconds=30)
"""Entries of other processes and changes of the system clock are noticed after at most this time."""
STOP_TIMEOUT = timedelta(seconds=3)
"""How long a stop waits for running deliveries. Cancelled ones are sent again later (at least once)."""
MAX_REASON_LENGTH = 500
"""Characters of an error message that are stored."""


def retry_delay(attempt: int, jitter: float) -> timedelta:
    """The delay after a failed attempt: exponential backoff with jitter.

    Args:
        attempt: 1 for the first.
        jitter: from 0 to 1; subtracts up to half of the delay, so that retries spread out.
    """
    # The exponent is limited because a timedelta can overflow.
    full: timedelta = min(FIRST_DELAY * 2 ** min(attempt - 1, 20), MAX_DELAY)
    return full * (1 - jitter / 2)


class MailDelivery:
    """Sends the mail for each outbox entry at least once, and retries until it succeeds or is dead-lettered.

    An asynchronous context manager: it delivers from entering to exiting; exiting waits for running deliveries.
    """

    def __init__(
        self,
        outbox: Outbox,
        notifier: Notifier,
        *,
        clock: Callable[[], datetime] = utc_now,
        jitter: Callable[[], float] = random.random,
        lease: timedelta = LEASE,
    ) -> None:
        self._outbox = outbox
        self._notifier = notifier
        self._clock = clock
        self._jitter = jitter
        self._lease = lease
        self._wake_up = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._occupying: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._worker: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Check the outbox now, because an entry was added."""
        self._wake_up.set()

    async def __aenter__(self) -> Self:
        """Start to deliver."""
        self._stopping = False
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lease no more entries, and wait for running deliveries, for at most ``STOP_TIMEOUT``."""
        self._stopping = True
        self.wake()
        try:
            async with asyncio.timeout(STOP_TIMEOUT.total_seconds()):
                if self._worker is not None:
                    await self._worker
                while self._running:
                    await asyncio.wait(self._running)
        except TimeoutError:
            log.warning("cancelling %d deliveries at shutdown; they are retried later", len(self._running))
        finally:
            # Repeated because asyncio.wait_for can swallow a cancellation up to Python 3.11 (python/cpython#86296).
            while self._running:
                for delivery in self._running:
                    delivery.cancel()
                await asyncio.wait(self._running, timeout=0.1)

    async def _work(self) -> None:
        while not self._stopping:
            self._wake_up.clear()
            try:
                may_have_more = await self._start_due()
                pause = timedelta(0) if may_have_more else await self._until_next_due()
            except StorageUnavailable as error:
                log.warning("cannot read the outbox, retrying: %s", error)
                pause = FIRST_DELAY
            except Exception:
                # Only a stop may end this loop: otherwise no mail would be sent until a restart.
                log.exception("unexpected error while reading the outbox, retrying")
                pause = FIRST_DELAY
            if pause:
                await self._sleep(pause)

    async def _start_due(self) -> bool:
        """Start a delivery for each due entry while slots are free; return whether more entries may be due."""
        slots = CONCURRENCY - len(self._occupying)
        if slots <= 0:
            return False
        now = self._clock()
        until = now + self._lease
        # No entry is rescheduled by more than MAX_DELAY, so a later time comes from a wrong clock.
        entries = await self._outbox.lease(now=now, until=until, limit=slots, latest=until + MAX_DELAY)
        for entry in entries:
            self._start(entry)
        return len(entries) == slots

    def _start(self, entry: OutboxEntry) -> None:
        delivery = asyncio.create_task(self._deliver(entry))
        self._running.add(delivery)
        self._occupying.add(delivery)
        slow = asyncio.get_running_loop().call_later(SLOW_AFTER.total_seconds(), self._release_slot, delivery)

        def finished(_: asyncio.Task[None]) -> None:
            slow.cancel()
            self._running.discard(delivery)
            self._release_slot(delivery)

        delivery.add_done_callback(finished)

    def _release_slot(self, delivery: asyncio.Task[None]) -> None:
        self._occupying.discard(delivery)
        self.wake()

    async def _until_next_due(self) -> timedelta:
        due_at = await self._outbox.next_due() if len(self._occupying) < CONCURRENCY else None
        if due_at is None:
            return POLL_INTERVAL
        return max(timedelta(milliseconds=1), min(due_at - self._clock(), POLL_INTERVAL))

    async def _sleep(self, pause: timedelta) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self._wake_up.wait()

    async def _deliver(self, entry: OutboxEntry) -> None:
        request_context.set(entry.context)  # only in the context of this task
        try:
            await self._report(await self._attempt(entry), entry)
        except Exception as error:
            # Only the type, as the message may contain the address. The entry is retried when its lease expires.
            log.error("unexpected error with outbox entry %d: %s", entry.id, type(error).__name__)

    async def _attempt(self, entry: OutboxEntry) -> Callable[[], Awaitable[None]]:
        """Try to deliver; return the call that reports the result to the outbox."""
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT.total_seconds()):
                await self._notifier.welcome(entry.event)
        except Undeliverable as error:
            return self._dead_letter(entry, str(error))
        except Exception as error:
            return self._failed(entry, error)
        return partial(self._outbox.delivered, entry)

    def _failed(self, entry: OutboxEntry, error: Exception) -> Callable[[], Awaitable[None]]:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")
        now = self._clock()
        if entry.attempts >= MAX_ATTEMPTS and now - entry.event.occurred_at >= MAX_AGE:
            return self._dead_letter(entry, reason)
        delay = retry_delay(entry.attempts, self._jitter())
        # Only the type of the error, as its message may contain the address.
        log.warning(
            "attempt %d to welcome user %s failed (%s); next in %.0f s",
            entry.attempts,
            entry.event.user_id,
            type(error).__name__,
            delay.total_seconds(),
        )
        return partial(self._outbox.reschedule, entry, due_at=now + delay, reason=_one_line(reason))

    def _dead_letter(self, entry: OutboxEntry, reason: str) -> Callable[[], Awaitable[None]]:
        log.error(
            "no welcome mail to user %s: outbox entry %d is dead-lettered after attempt %d",
            entry.event.user_id,
            entry.id,
            entry.attempts,
        )
        return partial(self._outbox.dead_letter, entry, reason=_one_line(reason))

    async def _report(self, report: Callable[[], Awaitable[None]], entry: OutboxEntry) -> None:
        """Report a result to the outbox, and retry while the lease lasts: unreported deliveries are sent twice."""
        while True:
            try:
                return await report()
            except StorageUnavailable as error:
                if entry.due_at is None or self._clock() + FIRST_DELAY >= entry.due_at:
                    log.warning("cannot store the result of outbox entry %d: %s", entry.id, error)
                    return None
            await asyncio.sleep(FIRST_DELAY.total_seconds())


def _one_line(text: str) -> str:
    """A text fit for storage and terminals: server replies can contain line breaks, escapes and invalid UTF-8."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_REASON_LENGTH])
