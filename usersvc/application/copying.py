"""The use case of moving all that a store keeps into another store, of whichever kind."""

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from usersvc.application.ports import CompleteArchive, KeyRecord, OutboxEntry, UserRecord, timestamp

AT_ONCE = 1000
"""Records in one transaction: nobody waits for the target."""

Record = TypeVar("Record")
Place = TypeVar("Place", int, str)
Advance = Callable[[int], None]
"""Told how many users more were done, after each batch of whatever kind; what it raises ends the work there."""


class NotACopy(Exception):
    """The target holds what the source has never held, or what nobody knows to be a copy; the text says which."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the records of one kind."""

    name: str
    copied: int
    already_there: int
    removed: int
    """From the target: the source has them no longer, or has them otherwise."""


@dataclass(frozen=True, slots=True)
class Sum:
    """What the records of one kind in a store come to."""

    name: str
    count: int
    digest: str = field(repr=False)
    """SHA-256 of all of them in order, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two stores come to, kind by kind."""

    source: Sequence[Sum]
    target: Sequence[Sum]
    gives_out_again: bool
    """The target would give out places that the source has given out already."""

    @property
    def is_same(self) -> bool:
        """Whether the target can take the place of the source."""
        return self.source == self.target and not self.gives_out_again

    @property
    def digest(self) -> str:
        """One for all that the source holds."""
        return hashlib.sha256("".join(each.digest for each in self.source).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Record, Place]):
    """One kind of records: how they are read and stored, and what is told apart of them."""

    name: str
    place: Callable[[Record], Place]
    """What they are ordered by, and known by."""
    read: Callable[[CompleteArchive, Place | None, int], Awaitable[list[Record]]]
    put: Callable[[CompleteArchive, Sequence[Record], Sequence[Place]], Awaitable[None]]
    values: Callable[[Record], Sequence[object]]
    """All that has to be the same in both stores."""


_USERS: _Kind[UserRecord, int] = _Kind(
    name="users",
    place=lambda user: user.position,
    read=lambda archive, after, limit: archive.users(after=after, limit=limit),
    put=lambda archive, users, instead_of: archive.put_users(users, instead_of=instead_of),
    values=lambda user: (
        user.position,
        str(user.id),
        user.email,
        user.mailbox,
        user.age,
        user.password_hash,
        timestamp(user.registered_at),
    ),
)
_ENTRIES: _Kind[OutboxEntry, int] = _Kind(
    name="outbox entries",
    place=lambda entry: entry.id,
    read=lambda archive, after, limit: archive.entries(after=after, limit=limit),
    put=lambda archive, entries, instead_of: archive.put_entries(entries, instead_of=instead_of),
    values=lambda entry: (
        entry.id,
        str(entry.event.user_id),
        entry.event.email,
        timestamp(entry.event.occurred_at),
        entry.attempts,
        entry.due_at and timestamp(entry.due_at),
        entry.reason,
        entry.cause and (entry.cause.request_id, entry.cause.trace_id, entry.cause.span_id),
    ),
)
_KEYS: _Kind[KeyRecord, str] = _Kind(
    name="idempotency keys",
    place=lambda key: key.digest,
    read=lambda archive, after, limit: archive.keys(after=after, limit=limit),
    put=lambda archive, keys, instead_of: archive.put_keys(keys, instead_of=instead_of),
    values=lambda key: (key.digest, str(key.user_id), timestamp(key.used_at)),
)


async def copy(source: CompleteArchive, target: CompleteArchive, *, advance: Advance) -> Sequence[Tally]:
    """Give the target all that the source holds, and take away what it holds no longer.

    The source is only read, and may be in use. Both are gone through side by side, and only what differs is stored: so
    a copy that was broken off goes on where it was, and one that was finished catches up, when it is begun again.

    Args:
        source: what is copied.
        target: empty, or a copy of the source that no service has used.
        advance: see ``Advance``.

    Raises:
        NotACopy: the target is something else; nothing more is changed there.
        StorageUnavailable: one of them does not answer.
    """
    given_out = await source.places()
    if not await target.begin_copy():
        raise NotACopy(
            "the target is in use: a service runs on it, or it holds something, and is not a copy that no service has "
            "used yet"
        )

    def expect_once_there(missing: Sequence[UserRecord], differing: Sequence[UserRecord]) -> None:
        if differing or any(user.position > given_out.position for user in missing):
            raise NotACopy("the target holds users whom the source has never held")

    # Users first: the others belong to them. Who is missing at the end was removed meanwhile.
    tallies = [
        await _copy_kind(_USERS, source, target, advance, expect_once_there),
        await _copy_kind(_ENTRIES, source, target, lambda _: advance(0)),
        await _copy_kind(_KEYS, source, target, lambda _: advance(0)),
    ]
    await target.put_places(await source.places())
    return tallies


async def _copy_kind(
    kind: _Kind[Record, Place],
    source: CompleteArchive,
    target: CompleteArchive,
    advance: Advance,
    expect: Callable[[Sequence[Record], Sequence[Record]], None] = lambda _, __: None,
) -> Tally:
    """Copy the records of one kind; ``expect`` is shown what the source has not, or not so, before it goes."""
    copied = already_there = removed = 0
    async for ours, theirs in _side_by_side(kind, source, target):
        values = {kind.place(record): kind.values(record) for record in ours}
        missing: list[Record] = [record for record in theirs if kind.place(record) not in values]
        differing: list[Record] = [
            record for record in theirs if values.get(kind.place(record), kind.values(record)) != kind.values(record)
        ]
        expect(missing, differing)
        gone = {kind.place(record) for record in (*missing, *differing)}
        same = {kind.place(record) for record in theirs} - gone
        new = [record for record in ours if kind.place(record) not in same]
        if new or gone:
            await kind.put(target, new, sorted(gone))
        copied += len(new)
        already_there += len(same)
        removed += len(gone)
        advance(len(ours))
    return Tally(kind.name, copied, already_there, removed)


async def _side_by_side(
    kind: _Kind[Record, Place], source: CompleteArchive, target: CompleteArchive
) -> AsyncIterator[tuple[list[Record], list[Record]]]:
    """All records of both, in order: each time those of the same range of places."""
    after: Place | None = None
    while True:
        ours, theirs = await kind.read(source, after, AT_ONCE), await kind.read(target, after, AT_ONCE)
        # A full batch tells nothing of what lies behind its last record; one that is not, that nothing does.
        ends = [kind.place(batch[-1]) for batch in (ours, theirs) if len(batch) == AT_ONCE]
        if not ends:
            yield ours, theirs
            return
        after = end = min(ends)
        yield [each for each in ours if kind.place(each) <= end], [each for each in theirs if kind.place(each) <= end]


async def compare(source: CompleteArchive, target: CompleteArchive, *, advance: Advance) -> Comparison:
    """Read everything in both, and tell what it comes to.

    Raises:
        StorageUnavailable: one of them does not answer.
    """
    sums = [await _sums(archive, advance) for archive in (source, target)]
    ours, theirs = await source.places(), await target.places()
    return Comparison(
        source=sums[0],
        target=sums[1],
        gives_out_again=theirs.position < ours.position or theirs.entry < ours.entry,
    )


async def _sums(archive: CompleteArchive, advance: Advance) -> Sequence[Sum]:
    return [
        await _sum(_USERS, archive, advance),
        await _sum(_ENTRIES, archive, lambda _: advance(0)),
        await _sum(_KEYS, archive, lambda _: advance(0)),
    ]


async def _sum(kind: _Kind[Record, Place], archive: CompleteArchive, advance: Advance) -> Sum:
    digest, count = hashlib.sha256(), 0
    after: Place | None = None
    while records := await kind.read(archive, after, AT_ONCE):
        for record in records:
            # One form for each, whatever it holds, that ends where the next begins.
            digest.update(f"{json.dumps(kind.values(record))}\n".encode())
        after = kind.place(records[-1])
        count += len(records)
        advance(len(records))
    return Sum(kind.name, count, digest.hexdigest())
