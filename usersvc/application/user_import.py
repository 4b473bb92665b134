"""The use cases of moving users in from other systems, and out again."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol
from uuid import UUID

from usersvc.application.clock import utc_now
from usersvc.application.keyset import in_pages
from usersvc.application.ports import Archive
from usersvc.application.read_models import UserRecord
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.user import User

STORED_AT_ONCE = 500
"""Users in one transaction: enough that its own price does not matter, and few enough that registrations, which wait
for it, do so for less than a tenth of a second with SQLite."""

EMAIL_TAKEN = Violation("email", "email-taken", "The mailbox belongs to somebody already who differs from this one.")
ID_TAKEN = Violation("id", "id-taken", "The id belongs to somebody else already.")


@dataclass(frozen=True, slots=True)
class ImportRow:
    """Somebody whom another system has registered, as it tells it: of the right shape, and not judged yet."""

    email: str
    age: int
    password_hash: str = field(repr=False)
    id: UUID | None = None
    registered_at: datetime | None = None
    """In UTC."""


class ImportStatus(Enum):
    """What became of a row."""

    IMPORTED = "imported"
    ALREADY_THERE = "already there"
    """A user with the same data."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a row, and why."""

    status: ImportStatus
    violations: tuple[Violation, ...] = ()


class FindMatching(Protocol):
    """See ``Archive.find_matching``."""

    def __call__(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> Awaitable[list[UserRecord]]:
        """Whoever has one of these mailboxes or one of these ids."""
        ...


@dataclass(frozen=True, slots=True)
class _Arrival:
    row: ImportRow
    user: User

    def is_like(self, record: UserRecord) -> bool:
        """Whether this is who is there already; what the other system did not tell is not asked for."""
        told, user = self.row, self.user
        return (
            (user.email.typed, user.age.years, user.password_hash) == (record.email, record.age, record.password_hash)
            and told.id in {None, record.id}
            and told.registered_at in {None, record.registered_at}
        )


class UserImport:
    """Takes in users of another system, many at a time, as often as it is asked to.

    Who is there already with the same data is no failure: an import that was broken off is run again from its
    beginning.
    """

    def __init__(
        self,
        *,
        add_all: Callable[[Sequence[User]], Awaitable[list[bool]]],
        find_matching: FindMatching,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Make the import.

        Args:
            add_all: see ``Users.add_all``.
            find_matching: see ``Archive.find_matching``.
            clock: the time, in UTC.
        """
        self._add_all = add_all
        self._holders = find_matching
        self._clock = clock

    async def take(self, rows: Sequence[ImportRow]) -> list[Outcome]:
        """Store those of them who break no rule and are not there yet, in one transaction for almost all.

        Returns:
            What became of each.

        Raises:
            StorageUnavailable: it is not known whether they were stored.
        """
        at = self._clock()
        outcomes: dict[int, Outcome] = {}
        waiting: dict[int, _Arrival] = {}
        for index, row in enumerate(rows):
            try:
                waiting[index] = _Arrival(row, _user(row, at))
            except ValidationFailed as refused:
                outcomes[index] = Outcome(ImportStatus.REJECTED, refused.violations)
        # Again for those who came second among these, or before whom somebody registered meanwhile.
        while waiting:
            settled = await self._settle(waiting)
            outcomes |= settled
            waiting = {index: arrival for index, arrival in waiting.items() if index not in settled}
        return [outcomes[index] for index in range(len(rows))]

    async def _settle(self, waiting: dict[int, _Arrival]) -> dict[int, Outcome]:
        """Judge and store; each is left out who would come second here."""
        records = await self._holders(
            mailboxes=[arrival.user.email.mailbox for arrival in waiting.values()],
            ids=[arrival.row.id for arrival in waiting.values() if arrival.row.id is not None],
        )
        of_mailbox = {record.mailbox: record for record in records}
        of_id = {record.id: record for record in records}
        outcomes: dict[int, Outcome] = {}
        new: dict[int, User] = {}
        claimed: set[str | UUID] = set()
        for index, arrival in waiting.items():
            user = arrival.user
            holder = of_mailbox.get(user.email.mailbox)
            if holder is not None or user.id in of_id:
                outcomes[index] = _judged(arrival, holder, of_id.get(user.id))
            elif claimed.isdisjoint({user.email.mailbox, user.id}):
                claimed |= {user.email.mailbox, user.id}
                new[index] = user
        stored = await self._add_all([*new.values()]) if new else []
        for index, is_stored in zip(new, stored, strict=True):
            if is_stored:
                outcomes[index] = Outcome(ImportStatus.IMPORTED)
        return outcomes


def _user(row: ImportRow, at: datetime) -> User:
    return User.imported(
        email=row.email,
        age=row.age,
        password_hash=row.password_hash,
        at=at,
        user_id=row.id,
        registered_at=row.registered_at,
    )


def _judged(arrival: _Arrival, of_mailbox: UserRecord | None, of_id: UserRecord | None) -> Outcome:
    """What becomes of one whose mailbox or id is somebody's."""
    if of_mailbox is not None and arrival.is_like(of_mailbox):
        return Outcome(ImportStatus.ALREADY_THERE)
    reasons = [EMAIL_TAKEN] if of_mailbox is not None else []
    # Who keeps the id and has changed is told of the mailbox alone.
    if of_id is not None and of_id is not of_mailbox:
        reasons.append(ID_TAKEN)
    return Outcome(ImportStatus.REJECTED, tuple(reasons))


class DryRun:
    """Stands in for a store while an import is tried out: knows who is there, and forgets who comes.

    Until it goes, it keeps everybody who came, to know who comes twice.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._of_mailbox: dict[str, UserRecord] = {}
        self._of_id: dict[UUID, UserRecord] = {}

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """Like ``Users.add_all``, among those who came before."""
        return [self._add(user) for user in users]

    def _add(self, user: User) -> bool:
        if user.email.mailbox in self._of_mailbox or user.id in self._of_id:
            return False
        record = UserRecord(
            position=0,
            id=user.id,
            email=user.email.typed,
            mailbox=user.email.mailbox,
            age=user.age.years,
            password_hash=user.password_hash,
            registered_at=user.registered_at,
        )
        self._of_mailbox[record.mailbox] = self._of_id[record.id] = record
        return True

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """Like ``Archive.find_matching``, of those who are there and those who came before."""
        there = await self._archive.find_matching(mailboxes=mailboxes, ids=ids)
        came = [self._of_mailbox.get(mailbox) for mailbox in mailboxes]
        came += [self._of_id.get(user_id) for user_id in ids]
        return there + [record for record in came if record is not None]


def everybody(archive: Archive) -> AsyncIterator[list[UserRecord]]:
    """All users as they are stored, page by page.

    Raises:
        StorageUnavailable: the store cannot answer.
    """
    return in_pages(archive.users, lambda records: records[-1].position if records else None)
