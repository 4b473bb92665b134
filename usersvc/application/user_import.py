"""The use cases of importing users from other systems and exporting them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol
from uuid import UUID

from usersvc.application.clock import utc_now
from usersvc.application.keyset import in_pages
from usersvc.application.password_hashes import parse_password_hash
from usersvc.application.ports import Archive
from usersvc.application.read_models import UserRecord
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

STORED_AT_ONCE = 500
"""Users per transaction: enough to make its fixed cost negligible, and few enough to delay concurrent registrations by
less than 100 ms on SQLite."""

EMAIL_TAKEN = Violation("email", "email-taken", "The mailbox belongs to an existing user with other data.")
ID_TAKEN = Violation("id", "id-taken", "The id belongs to another existing user.")


@dataclass(frozen=True, slots=True)
class ImportRow:
    """A user of another system: the fields have the right types, but the rules are not checked yet."""

    email: str
    age: int
    password_hash: str = field(repr=False)
    id: UUID | None = None
    registered_at: datetime | None = None
    """In UTC."""

    def to_user(self, at: datetime) -> User:
        """Create the user.

        Raises:
            ValidationFailed: with all violations.
        """
        violations: list[Violation] = []
        password_hash = PasswordHash(self.password_hash)
        user = collect(
            violations,
            lambda: User.imported(
                email=self.email,
                age=self.age,
                password_hash=password_hash,
                at=at,
                user_id=self.id,
                registered_at=self.registered_at,
            ),
        )
        collect(violations, lambda: parse_password_hash(password_hash))
        if user is None or violations:
            raise ValidationFailed(violations)
        return user

    def matches(self, record: UserRecord) -> bool:
        """Whether a stored user has the same data; an id or a time that the row lacks is not compared."""
        return (
            (self.email, self.age, self.password_hash) == (record.email, record.age, record.password_hash)
            and self.id in {None, record.id}
            and self.registered_at in {None, record.registered_at}
        )


class ImportStatus(Enum):
    """The result of importing one row."""

    IMPORTED = "imported"
    ALREADY_THERE = "already there"
    """A user with the same data exists."""
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of importing one row, with the reasons if it was rejected."""

    status: ImportStatus
    violations: tuple[Violation, ...] = ()


class FindMatching(Protocol):
    """The type of ``Archive.find_matching``."""

    def __call__(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> Awaitable[list[UserRecord]]:
        """Find the users with one of these mailboxes or ids."""
        ...


class UserImport:
    """Imports users of another system in batches.

    A row whose user exists with the same data is not an error, so an interrupted import can be run again from the
    beginning.
    """

    def __init__(
        self,
        *,
        add_all: Callable[[Sequence[User]], Awaitable[list[bool]]],
        find_matching: FindMatching,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Create an import.

        Args:
            add_all: ``Users.add_all``, or that of a ``DryRun``.
            find_matching: ``Archive.find_matching``, or that of a ``DryRun``.
            clock: the current time, in UTC.
        """
        self._add_all = add_all
        self._find_matching = find_matching
        self._clock = clock

    async def take(self, rows: Sequence[ImportRow]) -> list[Outcome]:
        """Store the users of all valid rows that do not exist yet, usually in one transaction.

        Returns:
            The outcome of each row.

        Raises:
            StorageUnavailable: it is not known whether the users were stored.
        """
        now = self._clock()
        outcomes: dict[int, Outcome] = {}
        users: dict[int, User] = {}
        for index, row in enumerate(rows):
            try:
                users[index] = row.to_user(now)
            except ValidationFailed as error:
                outcomes[index] = Outcome(ImportStatus.REJECTED, error.violations)
        # Repeated for duplicates within the batch, and for users who registered between reading and storing.
        while users:
            outcomes |= await self._store(rows, users)
            users = {index: user for index, user in users.items() if index not in outcomes}
        return [outcomes[index] for index in range(len(rows))]

    async def _store(self, rows: Sequence[ImportRow], users: dict[int, User]) -> dict[int, Outcome]:
        """Store the new users; of rows with the same mailbox or id, only the first gets an outcome."""
        ids = [row.id for row in (rows[index] for index in users) if row.id is not None]
        records = await self._find_matching(mailboxes=[user.email.mailbox for user in users.values()], ids=ids)
        by_mailbox = {record.mailbox: record for record in records}
        by_id = {record.id: record for record in records}
        outcomes: dict[int, Outcome] = {}
        new: dict[int, User] = {}
        claimed: set[str | UUID] = set()
        for index, user in users.items():
            keys: set[str | UUID] = {user.email.mailbox, user.id}
            same_mailbox, same_id = by_mailbox.get(user.email.mailbox), by_id.get(user.id)
            if same_mailbox is not None or same_id is not None:
                outcomes[index] = _compare(rows[index], same_mailbox, same_id)
            elif claimed.isdisjoint(keys):
                claimed |= keys
                new[index] = user
        stored = await self._add_all([*new.values()]) if new else []
        outcomes |= {
            index: Outcome(ImportStatus.IMPORTED) for index, is_stored in zip(new, stored, strict=True) if is_stored
        }
        return outcomes


def _compare(row: ImportRow, same_mailbox: UserRecord | None, same_id: UserRecord | None) -> Outcome:
    """The outcome of a row whose mailbox or id belongs to an existing user."""
    if same_mailbox is not None and row.matches(same_mailbox):
        return Outcome(ImportStatus.ALREADY_THERE)
    violations = [EMAIL_TAKEN] if same_mailbox is not None else []
    # If one user has both the mailbox and the id, the id is right: the other data differ.
    if same_id is not None and same_id is not same_mailbox:
        violations.append(ID_TAKEN)
    return Outcome(ImportStatus.REJECTED, tuple(violations))


class DryRun:
    """Replaces the store during a dry run: finds existing users but stores nothing.

    It keeps all imported users in memory to detect duplicates among them.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._by_mailbox: dict[str, UserRecord] = {}
        self._by_id: dict[UUID, UserRecord] = {}

    async def add_all(self, users: Sequence[User]) -> list[bool]:
        """Like ``Users.add_all``, but in memory."""
        return [self._add(user) for user in users]

    def _add(self, user: User) -> bool:
        if user.email.mailbox in self._by_mailbox or user.id in self._by_id:
            return False
        record = UserRecord.of(user)
        self._by_mailbox[record.mailbox] = self._by_id[record.id] = record
        return True

    async def find_matching(self, *, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        """Like ``Archive.find_matching``, among the stored users and those added before."""
        stored = await self._archive.find_matching(mailboxes=mailboxes, ids=ids)
        added = [self._by_mailbox.get(mailbox) for mailbox in mailboxes]
        added += [self._by_id.get(user_id) for user_id in ids]
        return stored + [record for record in added if record is not None]


def all_records(archive: Archive) -> AsyncIterator[list[UserRecord]]:
    """All users as stored, page by page.

    Raises:
        StorageUnavailable: a page cannot be read.
    """
    return in_pages(archive.users, lambda records: records[-1].position if records else None)
