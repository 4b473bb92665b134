"""Users and their outbox in a journal: a file of JSON lines."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from heapq import nsmallest
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import orjson

from docs.examples.journal import Change, Journal, Key
from usersvc.application.clock import timestamp, utc_now
from usersvc.application.idempotency import KEY_LIFETIME, EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import LAST, RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.read_models import Order, Page, UserRecord, UserView, view_of
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import Reserved, limits, reserve
from usersvc.domain.user import User

USERS, KEYS, OUTBOX, LIMITS, LAST_NUMBERS = "users", "keys", "outbox", "limits", "last"
"""The tables: users by position, keys by digest, entries by id, mail limits by digest, and the last position and id."""


# --8<-- [start:users]
class JournalUsers:
    """A ``Users`` in a file of JSON lines; an asynchronous context manager that opens and closes it."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)
        self._rows = self._journal.tables[USERS]
        self._positions: list[int] = []
        self._position_of_mailbox: dict[str, int] = {}
        self._position_of_id: dict[str, int] = {}
        self.outbox = JournalOutbox(self._journal)

    @property
    def archive(self) -> Self:
        """This object: it implements both ports."""
        return self

    async def __aenter__(self) -> Self:
        """Open the file; create it if it is missing.

        Raises:
            StorageUnavailable: it cannot be opened, is not a journal, or is used by another process.
        """
        await self._journal.run(self._open)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for running work and close the file."""
        await self._journal.run(self._journal.close)

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        # Read here: the thread has another context.
        context = request_context.get()

        def work() -> None:
            changes = [] if key is None else [*self._key_changes(key, user)]
            if user.email.mailbox in self._position_of_mailbox:
                raise EmailAlreadyRegistered
            self._write([*changes, *self._user_changes([user], context)])

        await self._journal.run(work)

    # --8<-- [end:users]

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        context = request_context.get()

        def work() -> list[bool]:
            mailboxes, ids = set(self._position_of_mailbox), set(self._position_of_id)
            stored: list[bool] = []
            for user in users:
                free = user.email.mailbox not in mailboxes and str(user.id) not in ids
                if free:
                    mailboxes.add(user.email.mailbox)
                    ids.add(str(user.id))
                stored.append(free)
            self._write(self._user_changes([user for user, free in zip(users, stored, strict=True) if free], context))
            return stored

        return await self._journal.run(work)

    async def remove(self, user_id: UUID) -> bool:
        def work() -> bool:
            position = self._position_of_id.get(str(user_id))
            if position is None:
                return False
            tables = self._journal.tables
            removed: list[Change] = [(USERS, position, None)]
            for table in (KEYS, OUTBOX):
                removed += [(table, key, None) for key, row in tables[table].items() if row["user_id"] == str(user_id)]
            self._write(removed)
            # Removes the earlier lines about this user as well.
            self._journal.rewrite()
            return True

        return await self._journal.run(work)

    async def registered_with(self, key: IdempotencyKey, *, at: datetime) -> EarlierRegistration | None:
        def work() -> EarlierRegistration | None:
            used = self._journal.tables[KEYS].get(key.digest)
            if used is None or used["used_at"] <= timestamp(at - KEY_LIFETIME):
                return None
            row = self._rows[self._position_of_id[used["user_id"]]]
            return EarlierRegistration(row["view"], row["password_hash"])

        return await self._journal.run(work)

    async def find(self, user_id: UUID) -> UserView | None:
        def work() -> UserView | None:
            position = self._position_of_id.get(str(user_id))
            view: UserView | None = None if position is None else self._rows[position]["view"]
            return view

        return await self._journal.run(work)

    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        def work() -> Page:
            positions = self._positions
            if mailbox is not None:
                position = self._position_of_mailbox.get(mailbox)
                positions = [] if position is None else [position]
            # One more than requested shows whether there is a next page.
            if order is Order.ASC:
                begin = 0 if after is None else bisect_right(positions, after)
                shown = positions[begin : begin + limit + 1]
            else:
                end = len(positions) if after is None else bisect_left(positions, after)
                shown = positions[max(0, end - limit - 1) : end][::-1]
            return Page(
                lines=b"\n".join(orjson.dumps(self._rows[position]["view"]) for position in shown[:limit]),
                next_after=shown[limit - 1] if len(shown) > limit else None,
            )

        return await self._journal.run(work)

    async def check(self) -> None:
        """Write an empty transaction, which fails if the disk is full."""
        await self._journal.run(lambda: self._journal.write([]))

    # --- the archive ---

    async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
        def work() -> list[UserRecord]:
            begin = 0 if after is None else bisect_right(self._positions, after)
            return [self._record(position) for position in self._positions[begin : begin + limit]]

        return await self._journal.run(work)

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        def work() -> list[UserRecord]:
            found = {self._position_of_mailbox.get(mailbox) for mailbox in mailboxes}
            found |= {self._position_of_id.get(str(user_id)) for user_id in ids}
            return [self._record(position) for position in sorted(each for each in found if each is not None)]

        return await self._journal.run(work)

    # --- in the journal's thread ---

    def _open(self) -> None:
        self._journal.open()
        for position, row in self._rows.items():
            self._index(int(position), row)
        ended = [digest for digest, row in self._journal.tables[LIMITS].items() if row["until"] <= timestamp(utc_now())]
        self._journal.write((LIMITS, digest, None) for digest in ended)

    # --8<-- [start:write]
    def _user_changes(self, users: Sequence[User], context: RequestContext | None) -> Iterator[Change]:
        """The changes that store users and their events."""
        given = self._journal.tables[LAST_NUMBERS]
        position, entry_id = given.get(USERS, 0), given.get(OUTBOX, 0)
        reserved: dict[str, Reserved] = {}
        for user in users:
            position += 1
            yield (
                USERS,
                position,
                {"view": view_of(user), "mailbox": user.email.mailbox, "password_hash": user.password_hash},
            )
            for event in user.events:
                entry_id += 1
                due_at, after = reserve(event, self._reserved(event) | reserved)
                reserved |= after
                reason = RATE_LIMITED if due_at > event.occurred_at else None
                yield (OUTBOX, entry_id, _row(OutboxEntry(entry_id, event, 0, due_at, reason, context=context)))
        for digest, each in reserved.items():
            yield (LIMITS, digest, {"since": timestamp(each.since), "until": timestamp(each.until)})
        yield (LAST_NUMBERS, USERS, position)
        yield (LAST_NUMBERS, OUTBOX, entry_id)

    def _reserved(self, event: UserRegistered) -> dict[str, Reserved]:
        """The reservations of the mail limits that apply to an event."""
        rows = self._journal.tables[LIMITS]
        return {
            digest: Reserved(*(datetime.fromisoformat(rows[digest][name]) for name in ("since", "until")))
            for digest in limits(event)
            if digest in rows
        }

    def _write(self, changes: Iterable[Change]) -> None:
        """Store changes and update the indexes."""
        changes = list(changes)
        before = {key: self._rows[key] for table, key, _ in changes if table == USERS and key in self._rows}
        self._journal.write(changes)
        for table, key, row in changes:
            if table == USERS and row is not None:
                self._index(int(key), row)
            elif table == USERS:
                self._unindex(int(key), before[key])

    # --8<-- [end:write]

    def _index(self, position: int, row: dict[str, Any]) -> None:
        insort(self._positions, position)
        self._position_of_mailbox[row["mailbox"]] = self._position_of_id[row["view"]["id"]] = position

    def _unindex(self, position: int, row: dict[str, Any]) -> None:
        del self._positions[bisect_left(self._positions, position)]
        del self._position_of_mailbox[row["mailbox"]], self._position_of_id[row["view"]["id"]]

    def _key_changes(self, key: IdempotencyKey, user: User) -> Iterator[Change]:
        """The changes that store a key and delete expired keys."""
        keys = self._journal.tables[KEYS]
        ended = timestamp(user.registered_at - KEY_LIFETIME)
        yield from [(KEYS, digest, None) for digest, used in keys.items() if used["used_at"] <= ended]
        if key.digest in keys and keys[key.digest]["used_at"] > ended:
            raise IdempotencyKeyUsed
        yield (KEYS, key.digest, {"user_id": str(user.id), "used_at": timestamp(user.registered_at)})

    def _record(self, position: int) -> UserRecord:
        row = self._rows[position]
        view = row["view"]
        return UserRecord(
            position=position,
            id=UUID(view["id"]),
            email=view["email"],
            mailbox=row["mailbox"],
            age=view["age"],
            password_hash=row["password_hash"],
            registered_at=datetime.fromisoformat(view["registered_at"]),
        )


# --8<-- [start:outbox]
class JournalOutbox:
    """An ``Outbox`` in the journal of a ``JournalUsers``."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._rows = journal.tables[OUTBOX]

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        def work() -> list[OutboxEntry]:
            waiting = ((row["due_at"], key) for key, row in self._rows.items() if row["due_at"] is not None)
            due = (
                (due_at, key)
                for due_at, key in waiting
                if due_at <= timestamp(now)
                or (due_at > timestamp(latest) and not _entry(key, self._rows[key]).is_rate_limited)
            )
            leased = [
                replace(entry, attempts=entry.attempts + 1, due_at=until, lease=str(uuid4()))
                for entry in (_entry(key, self._rows[key]) for _, key in nsmallest(limit, due))
            ]
            if leased:
                self._put(*leased)
            return leased

        return await self._journal.run(work)

    async def delivered(self, entry: OutboxEntry) -> None:
        await self._settle(entry, lambda: self._journal.write([(OUTBOX, entry.id, None)]))

    async def reschedule(self, entry: OutboxEntry, *, due_at: datetime, reason: str) -> None:
        await self._settle(entry, lambda: self._put(replace(entry, due_at=due_at, reason=reason, lease=None)))

    async def dead_letter(self, entry: OutboxEntry, *, reason: str) -> None:
        await self._settle(entry, lambda: self._put(replace(entry, due_at=None, reason=reason, lease=None)))

    # --8<-- [end:outbox]

    async def next_due(self) -> datetime | None:
        def work() -> datetime | None:
            first = min((row["due_at"] for row in self._rows.values() if row["due_at"] is not None), default=None)
            return None if first is None else datetime.fromisoformat(first)

        return await self._journal.run(work)

    async def entries(self, *, after: int | None = None, limit: int | None = None) -> list[OutboxEntry]:
        return await self._journal.run(
            lambda: [_entry(key, self._rows[key]) for key in sorted(self._rows) if int(key) > (after or 0)][:limit]
        )

    async def retry(self, entry_id: int, *, now: datetime) -> bool:
        def work() -> bool:
            row = self._rows.get(entry_id)
            if row is None or (row["lease"] is not None and row["due_at"] > timestamp(now)):
                return False
            self._put(replace(_entry(entry_id, row), due_at=now, attempts=0, lease=None))
            return True

        return await self._journal.run(work)

    async def state(self) -> OutboxState:
        def work() -> OutboxState:
            entries = [_entry(key, row) for key, row in sorted(self._rows.items())]
            pending = [entry for entry in entries if entry.due_at is not None]
            return OutboxState(
                pending=len(pending),
                dead_lettered=len(entries) - len(pending),
                oldest=next((entry.event.occurred_at for entry in pending if not entry.is_rate_limited), None),
            )

        return await self._journal.run(work)

    async def _settle(self, entry: OutboxEntry, store: Callable[[], None]) -> None:
        def work() -> None:
            row = self._rows.get(entry.id)
            if row is not None and row["lease"] is not None and row["lease"] == entry.lease:
                store()

        await self._journal.run(work)

    def _put(self, *entries: OutboxEntry) -> None:
        self._journal.write((OUTBOX, entry.id, _row(entry)) for entry in entries)


def _row(entry: OutboxEntry) -> dict[str, Any]:
    return {
        "user_id": str(entry.event.user_id),
        "email": entry.event.email,
        "occurred_at": timestamp(entry.event.occurred_at),
        "attempts": entry.attempts,
        "due_at": None if entry.due_at is None else timestamp(entry.due_at),
        "reason": entry.reason,
        "lease": entry.lease,
        "context": None if entry.context is None else asdict(entry.context),
    }


def _entry(entry_id: Key, row: dict[str, Any]) -> OutboxEntry:
    return OutboxEntry(
        id=int(entry_id),
        event=UserRegistered(UUID(row["user_id"]), row["email"], datetime.fromisoformat(row["occurred_at"])),
        attempts=row["attempts"],
        due_at=None if row["due_at"] is None else datetime.fromisoformat(row["due_at"]),
        reason=row["reason"],
        lease=row["lease"],
        context=None if row["context"] is None else RequestContext(**row["context"]),
    )
