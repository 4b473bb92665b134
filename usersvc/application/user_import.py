"""The use case of importing users from other systems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from uuid import UUID

from usersvc.application.clock import utc_now
from usersvc.application.password_hashes import parse_password_hash
from usersvc.application.ports import Archive, Users
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
        with collect(violations):
            user = User.imported(
                email=self.email,
                age=self.age,
                password_hash=PasswordHash(self.password_hash),
                at=at,
                user_id=self.id,
                registered_at=self.registered_at,
            )
        with collect(violations):
            parse_password_hash(self.password_hash)
        if violations:
            raise ValidationFailed(violations)
        return user

    def matches(self, record: UserRecord) -> bool:
        """Whether a stored user has the same data; an id or a time that the row lacks is not compared."""
        return (
            (self.email, self.age, self.password_hash) == (record.email, record.age, record.password_hash)
            and self.id in {None, record.id}
            and self.registered_at in {None, record.registered_at}
        )


class Accepted(Enum):
    """The result of importing a valid row."""

    IMPORTED = "imported"
    ALREADY_THERE = "already there"
    """A user with the same data exists."""


Outcome = Accepted | ValidationFailed
"""The result of importing one row; the error has the reasons for rejecting it."""


class UserImport:
    """Imports users of another system in batches.

    A row whose user exists with the same data is not an error, so an interrupted import can be run again from the
    beginning.
    """

    def __init__(self, users: Users, *, archives: Sequence[Archive], clock: Callable[[], datetime] = utc_now) -> None:
        """Create an import.

        Args:
            users: where the users are added; for a dry run, a store in memory.
            archives: where existing users are looked up: the archive of ``users`` and, for a dry run, the real one.
            clock: the current time, in UTC.
        """
        self._users = users
        self._archives = archives
        self._clock = clock

    async def take(self, rows: Sequence[ImportRow | ValidationFailed]) -> list[Outcome]:
        """Store the users of all valid rows that do not exist yet, usually in one transaction.

        Args:
            rows: an error stands for a row that could not be read, and is its outcome.

        Returns:
            The outcome of each row.

        Raises:
            StorageUnavailable: it is not known whether the users were stored.
        """
        now = self._clock()
        outcomes: dict[int, Outcome] = {}
        new: dict[int, tuple[ImportRow, User]] = {}
        for index, row in enumerate(rows):
            try:
                if isinstance(row, ValidationFailed):
                    raise row
                new[index] = row, row.to_user(now)
            except ValidationFailed as error:
                outcomes[index] = error
        # Repeated for duplicates within the batch, and for users who registered between reading and storing.
        while new:
            outcomes |= await self._store(new)
            new = {index: each for index, each in new.items() if index not in outcomes}
        return [outcomes[index] for index in range(len(rows))]

    async def _store(self, new: Mapping[int, tuple[ImportRow, User]]) -> dict[int, Outcome]:
        """Store the users who do not exist; of rows with the same mailbox or id, only the first gets an outcome."""
        mailboxes = [user.email.mailbox for _, user in new.values()]
        ids = [row.id for row, _ in new.values() if row.id is not None]
        existing: dict[str | UUID, UserRecord] = {}
        for archive in self._archives:
            for record in await archive.find_matching(mailboxes=mailboxes, ids=ids):
                existing |= {record.mailbox: record, record.id: record}
        outcomes: dict[int, Outcome] = {}
        added: dict[int, User] = {}
        claimed: set[str | UUID] = set()
        for index, (row, user) in new.items():
            keys: set[str | UUID] = {user.email.mailbox, user.id}
            if not keys.isdisjoint(existing):
                outcomes[index] = _compare(row, existing.get(user.email.mailbox), existing.get(user.id))
            elif keys.isdisjoint(claimed):
                claimed |= keys
                added[index] = user
        stored = await self._users.add_all([*added.values()]) if added else []
        for index, is_stored in zip(added, stored, strict=True):
            if is_stored:
                outcomes[index] = Accepted.IMPORTED
        return outcomes


def _compare(row: ImportRow, same_mailbox: UserRecord | None, same_id: UserRecord | None) -> Outcome:
    """The outcome of a row whose mailbox or id belongs to an existing user."""
    if same_mailbox is not None and row.matches(same_mailbox):
        return Accepted.ALREADY_THERE
    violations = [EMAIL_TAKEN] if same_mailbox is not None else []
    # If one user has both the mailbox and the id, the id is right: the other data differ.
    if same_id is not None and same_id is not same_mailbox:
        violations.append(ID_TAKEN)
    return ValidationFailed(violations)
