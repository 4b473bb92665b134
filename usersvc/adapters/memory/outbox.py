"""The outbox in memory."""

from dataclasses import replace
from datetime import datetime
from heapq import nsmallest
from uuid import UUID, uuid4

from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.request_context import request_context
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import Reserved, reserve


class InMemoryOutbox:
    """An ``Outbox`` that lives as long as the process."""

    def __init__(self) -> None:
        self._entries: dict[int, OutboxEntry] = {}
        # At most two for each user, so expired ones may stay.
        self._reserved: dict[str, Reserved] = {}
        self._last_id = 0

    def put(self, event: UserRegistered) -> None:
        """Add an event, due as soon as the mail limits allow."""
        due_at, reserved = reserve(event, self._reserved)
        self._reserved |= reserved
        self._last_id += 1
        self._entries[self._last_id] = OutboxEntry(
            id=self._last_id,
            event=event,
            attempts=0,
            due_at=due_at,
            reason=RATE_LIMITED if due_at > event.occurred_at else None,
            context=request_context.get(),
        )

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        due = [
            (entry.due_at, entry.id, entry)
            for entry in self._entries.values()
            if entry.due_at is not None
            and (entry.due_at <= now or (entry.due_at > latest and not entry.is_rate_limited))
        ]
        leased = [
            replace(entry, attempts=entry.attempts + 1, due_at=until, lease=str(uuid4()))
            for *_, entry in nsmallest(limit, due)
        ]
        self._entries.update((entry.id, entry) for entry in leased)
        return leased

    async def delivered(self, entry: OutboxEntry) -> None:
        if self._has_lease(entry):
            del self._entries[entry.id]

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime | None, reason: str) -> None:
        if self._has_lease(entry):
            self._entries[entry.id] = replace(entry, due_at=due_at, reason=reason, lease=None)

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        await self.reschedule(entry, due_at=None, reason=reason)

    async def next_due(self) -> datetime | None:
        return min((entry.due_at for entry in self._entries.values() if entry.due_at is not None), default=None)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        return [entry for entry in self._entries.values() if entry.id > (after or 0)][:limit]

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        entry = self._entries.get(entry_id)
        if entry is None or (entry.lease is not None and entry.due_at is not None and entry.due_at > now):
            return False
        self._entries[entry_id] = replace(entry, due_at=now, attempts=0, lease=None)
        return True

    async def state(self) -> OutboxState:
        pending = [entry for entry in self._entries.values() if entry.due_at is not None]
        return OutboxState(
            pending=len(pending),
            dead_lettered=len(self._entries) - len(pending),
            oldest=next((entry.event.occurred_at for entry in pending if not entry.is_rate_limited), None),
        )

    def remove_user(self, user_id: UUID) -> None:
        """Delete the entries of this user."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.event.user_id != user_id}

    def _has_lease(self, entry: OutboxEntry) -> bool:
        stored = self._entries.get(entry.id)
        return stored is not None and stored.lease is not None and stored.lease == entry.lease
