"""Tells people what has happened, apart from the request in which it happened."""

import asyncio
import logging

from usersvc.application.ports import Notifier
from usersvc.domain.events import UserRegistered

log = logging.getLogger(__name__)


class Notifications:
    """Hands events to the notifier in tasks of their own, so that nobody waits for a mail and none can do harm."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._in_hand: set[asyncio.Task[None]] = set()

    def publish(self, *events: UserRegistered) -> None:
        """Begin to tell of events that are already stored; returns at once and never raises."""
        for event in events:
            task = asyncio.create_task(self._welcome(event))
            # The loop itself keeps only weak references to tasks.
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)

    async def drain(self) -> None:
        """Wait until everything published so far has been told or has failed."""
        while self._in_hand:
            await asyncio.wait(self._in_hand)

    async def _welcome(self, event: UserRegistered) -> None:
        try:
            await self._notifier.welcome(event)
        except Exception as error:
            # Only the kind of error: its text may hold the address, which log lines do not.
            log.error("no welcome for user %s: %s", event.user_id, type(error).__name__)
