"""Delivers what the outbox holds, apart from the requests that put it there."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
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

FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=5), timedelta(hours=1)
"""How long a failed delivery waits the first time, and at most; each wait is twice the one before."""
LAST_ATTEMPT, GIVE_UP_AFTER = 60, timedelta(days=1)
"""What has to have been reached, both, before an entry is dead-lettered.

The waits before the last attempt add up to 25 to 50 hours: relays try for four to five days (RFC 5321, section
4.5.4.1), people wait less. Attempts are counted because time passes also while the service is down, and time because
a process that crashes over and over uses up attempts.
"""
DELIVERY_TIMEOUT = timedelta(seconds=60)
"""For one attempt."""
LEASE = timedelta(seconds=90)
"""Longer than an attempt takes, so that no two processes ever send one mail at once."""
AT_ONCE, PLACE_KEPT = 8, timedelta(seconds=10)
"""How many deliveries go on at once, and how long one counts for that.

Those that hang so give their places to others, while no more than ``AT_ONCE * DELIVERY_TIMEOUT / PLACE_KEPT`` can come
together: 48, which mail servers take from one client.
"""
LONGEST_SLEEP = timedelta(seconds=30)
"""Another process's entries, and a clock that was set, are noticed that late at most."""
STOP_TIMEOUT = timedelta(seconds=3)
"""How long a stop waits for deliveries in hand. One that is broken off is sent again later: at least once."""
LONGEST_REASON = 500
"""Characters of what a server said that are kept."""


def wait_before(attempt: int, jitter: float) -> timedelta:
    """How long to wait after a failed attempt.

    Args:
        attempt: 1 for the first.
        jitter: from 0 to 1; takes off up to half, so that what failed together is not tried again together.
    """
    # Without the bound on the exponent, the power outgrows what a timedelta can hold.
    full: timedelta = min(FIRST_WAIT * 2 ** min(attempt - 1, 20), LONGEST_WAIT)
    return full * (1 - jitter / 2)


class MailDelivery:
    """Tells people what has happened: at least once each, trying again until it works or is of no use.

    An asynchronous context manager: it works from entering to leaving, which lets the deliveries in hand finish.
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
        self._woken = asyncio.Event()
        self._in_hand: set[asyncio.Task[None]] = set()
        self._in_places: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._worker: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look into the outbox now: something has been put there."""
        self._woken.set()

    async def __aenter__(self) -> Self:
        """Begin to deliver."""
        self._stopping = False
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take nothing new, and let what is in hand finish, within ``STOP_TIMEOUT``."""
        self._stopping = True
        self.wake()
        try:
            async with asyncio.timeout(STOP_TIMEOUT.total_seconds()):
                if self._worker is not None:
                    await self._worker
                while self._in_hand:
                    await asyncio.wait(self._in_hand)
        except TimeoutError:
            log.warning("the stop breaks off %d deliveries; they are tried again later", len(self._in_hand))
        finally:
            # Once may not be enough: up to Python 3.11, asyncio.wait_for can swallow it (python/cpython#86296).
            while self._in_hand:
                for delivery in self._in_hand:
                    delivery.cancel()
                await asyncio.wait(self._in_hand, timeout=0.1)

    async def _work(self) -> None:
        while not self._stopping:
            self._woken.clear()
            try:
                took = await self._take_due()
                pause = timedelta(0) if took else await self._until_next_due()
            except StorageUnavailable as error:
                log.warning("the outbox cannot be read just now: %s", error)
                pause = FIRST_WAIT
            except Exception:
                # Nothing may end this loop but a stop: nobody would be told any more, and nobody would know.
                log.exception("the outbox could not be worked on")
                pause = FIRST_WAIT
            if pause:
                await self._sleep(pause)

    async def _take_due(self) -> bool:
        """Begin every delivery that is due and for which there is a place; tells whether there may be more."""
        places = AT_ONCE - len(self._in_places)
        if places <= 0:
            return False
        now = self._clock()
        until = now + self._lease
        # Nobody here puts an entry off for longer.
        entries = await self._outbox.lease(now=now, until=until, limit=places, latest=until + LONGEST_WAIT)
        for entry in entries:
            self._begin(entry)
        return len(entries) == places

    def _begin(self, entry: OutboxEntry) -> None:
        delivery = asyncio.create_task(self._deliver(entry))
        self._in_hand.add(delivery)
        self._in_places.add(delivery)
        slow = asyncio.get_running_loop().call_later(PLACE_KEPT.total_seconds(), self._free_place_of, delivery)

        def finished(_: asyncio.Task[None]) -> None:
            slow.cancel()
            self._in_hand.discard(delivery)
            self._free_place_of(delivery)

        delivery.add_done_callback(finished)

    def _free_place_of(self, delivery: asyncio.Task[None]) -> None:
        self._in_places.discard(delivery)
        # Others may have waited for the place.
        self.wake()

    async def _until_next_due(self) -> timedelta:
        if len(self._in_places) >= AT_ONCE:
            return LONGEST_SLEEP
        due_at = await self._outbox.next_due()
        if due_at is None:
            return LONGEST_SLEEP
        return max(timedelta(milliseconds=1), min(due_at - self._clock(), LONGEST_SLEEP))

    async def _sleep(self, pause: timedelta) -> None:
        try:
            async with asyncio.timeout(pause.total_seconds()):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _deliver(self, entry: OutboxEntry) -> None:
        # In a task, and so a context, of its own.
        request_context.set(entry.context)
        try:
            answer = await self._attempt(entry)
            await self._store(answer, entry)
        except Exception as error:
            # Without the text, which may hold the address; log lines do not. The lease runs out, and it is tried again.
            log.error("outbox entry %d could not be worked on: %s", entry.id, type(error).__name__)

    async def _attempt(self, entry: OutboxEntry) -> Callable[[], Awaitable[None]]:
        """Try to deliver; gives what the outbox is to be told."""
        try:
            async with asyncio.timeout(DELIVERY_TIMEOUT.total_seconds()):
                await self._notifier.welcome(entry.event)
        except Undeliverable as error:
            return self._given_up(entry, _one_line(str(error)))
        except Exception as error:
            reason = _one_line(f"{type(error).__name__}: {error}".removesuffix(": "))
            now = self._clock()
            if entry.attempts >= LAST_ATTEMPT and now - entry.event.occurred_at >= GIVE_UP_AFTER:
                return self._given_up(entry, reason)
            wait = wait_before(entry.attempts, self._jitter())
            # Only the kind of error goes to the log: its text may hold the address.
            log.warning(
                "attempt %d to welcome user %s failed (%s); next in %.0f s",
                entry.attempts,
                entry.event.user_id,
                type(error).__name__,
                wait.total_seconds(),
            )
            return partial(self._outbox.reschedule, entry, due_at=now + wait, reason=reason)
        return partial(self._outbox.delivered, entry)

    def _given_up(self, entry: OutboxEntry, reason: str) -> Callable[[], Awaitable[None]]:
        log.error(
            "user %s will not be welcomed: outbox entry %d is dead-lettered after attempt %d",
            entry.event.user_id,
            entry.id,
            entry.attempts,
        )
        return partial(self._outbox.dead_letter, entry, reason=reason)

    async def _store(self, answer: Callable[[], Awaitable[None]], entry: OutboxEntry) -> None:
        """Tell the outbox, and again while the lease lasts: a delivery that it is not told of comes twice."""
        while True:
            try:
                return await answer()
            except StorageUnavailable as error:
                if entry.due_at is None or self._clock() + FIRST_WAIT >= entry.due_at:
                    log.warning("what became of outbox entry %d could not be stored: %s", entry.id, error)
                    return None
            await asyncio.sleep(FIRST_WAIT.total_seconds())


def _one_line(text: str) -> str:
    """A text fit for storage and terminals: what a server answers may hold line breaks, escapes and bad UTF-8."""
    return "".join(character if character.isprintable() else " " for character in text[:LONGEST_REASON])
