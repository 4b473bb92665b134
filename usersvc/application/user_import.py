"""The use case of importing users from other systems."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import compress
from typing import Literal
from uuid import UUID

from usersvc.application.clock import utc_now
from usersvc.application.ports import Archive, Users
from usersvc.application.read_models import UserRecord
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

STORED_AT_ONCE = 500
"""Users per transaction, few enough to delay concurrent registrations by less than 100 ms on SQLite."""

MAX_HASH_COST = 16
"""The highest accepted cost of bcrypt: verifying takes about five seconds, and twice as long per further step."""

EMAIL_TAKEN = Violation("email", "email-taken", "The mailbox belongs to an existing user with other data.")
ID_TAKEN = Violation("id", "id-taken", "The id belongs to another existing user.")
UNKNOWN_HASH = Violation("password_hash", "unknown-hash", "Must be a complete bcrypt hash: $2a$, $2b$ or $2y$.")
COST_TOO_HIGH = Violation("password_hash", "cost-too-high", f"The cost must be at most {MAX_HASH_COST}.")

_HASH = re.compile(
    # A hash of this service, with the id of its pepper if it has one ...
    r"(\$hmac-sha384-bcrypt\$([0-9a-f]{8})?(?=\$2b\$))?"
    # ... or one of another system. The salt has 128 bits and the digest 184 bits, so the last character of each encodes
    # fewer than six bits.
    r"\$2[aby]\$(?P<cost>0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)


def parse_password_hash(text: str) -> PasswordHash:
    """Accept a hash that the service can verify: a bcrypt hash (``$2a$``, ``$2b$``, ``$2y$``) or one of its own.

    Raises:
        ValidationFailed: the hash has another form, or a cost above ``MAX_HASH_COST``.
    """
    found = _HASH.fullmatch(text)
    if found is None:
        raise ValidationFailed([UNKNOWN_HASH])
    if int(found["cost"]) > MAX_HASH_COST:
        raise ValidationFailed([COST_TOO_HIGH])
    return PasswordHash(text)


@dataclass(frozen=True, slots=True)
class ImportRow:
    """A user of another system: the fields have the right types, but the other rules are not checked yet."""

    email: str
    age: int
    password_hash: str = field(repr=False)
    id: UUID | None = None
    registered_at: datetime | None = None
    """In UTC."""

    def to_user(self, at: datetime) -> User:
        """Create the user; raises ``ValidationFailed`` with all violations."""
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


Outcome = Literal["imported", "already there"] | ValidationFailed
"""The result of importing one row; "already there" is a user with the same data, an error means that it is rejected."""


class UserImport:
    """Imports users of another system in batches; an interrupted import can be run again from the beginning."""

    def __init__(self, users: Users, *, archives: Sequence[Archive], clock: Callable[[], datetime] = utc_now) -> None:
        """``archives``: where existing users are looked up, that of ``users`` and, for a dry run, the real one."""
        self._users = users
        self._archives = archives
        self._clock = clock

    async def take(self, rows: Sequence[ImportRow | ValidationFailed]) -> list[Outcome]:
        """Store the users who do not exist yet, usually in one transaction; returns each outcome.

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
        while new:
            outcomes |= await self._store(new)
            # Again for those whose mailbox or id was taken by another row, or by a registration after the look-up.
            new = {index: each for index, each in new.items() if index not in outcomes}
        return [outcomes[index] for index in range(len(rows))]

    async def _store(self, new: Mapping[int, tuple[ImportRow, User]]) -> dict[int, Outcome]:
        """Store the users who do not exist; those who cannot be stored get no outcome."""
        mailboxes = [user.email.mailbox for _, user in new.values()]
        ids = [row.id for row, _ in new.values() if row.id is not None]
        existing: dict[str | UUID, UserRecord] = {}
        for archive in self._archives:
            for record in await archive.find_matching(mailboxes=mailboxes, ids=ids):
                existing |= {record.mailbox: record, record.id: record}
        outcomes: dict[int, Outcome] = {}
        added: dict[int, User] = {}
        for index, (row, user) in new.items():
            same_mailbox, same_id = existing.get(user.email.mailbox), existing.get(user.id)
            if same_mailbox is None and same_id is None:
                added[index] = user
            elif same_mailbox is not None and row.matches(same_mailbox):
                outcomes[index] = "already there"
            else:
                violations = [EMAIL_TAKEN] if same_mailbox is not None else []
                # If one user has both the mailbox and the id, the id is right: the other data differ.
                if same_id is not None and same_id is not same_mailbox:
                    violations.append(ID_TAKEN)
                outcomes[index] = ValidationFailed(violations)
        stored = await self._users.add_all([*added.values()]) if added else []
        for index in compress(added, stored):
            outcomes[index] = "imported"
        return outcomes
