"""The user: the aggregate that holds every rule about users, as constants and methods of it and its value objects."""

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self
from uuid import UUID

from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import Password, PasswordHash

if sys.version_info >= (3, 14):
    from uuid import uuid7
else:
    from uuid_utils.compat import uuid7


@dataclass(frozen=True, slots=True)
class Age:
    """An age in whole years; any other than an integer from ``MIN`` to ``MAX`` raises ``ValidationFailed``."""

    MIN: ClassVar[int] = 18
    MAX: ClassVar[int] = 130

    years: int

    def __post_init__(self) -> None:
        # The exact type, since True and 30.0 compare like numbers in the range.
        if type(self.years) is not int or not self.MIN <= self.years <= self.MAX:
            raise ValidationFailed([Violation("age", "out-of-range", f"Must be from {self.MIN} to {self.MAX}.")])


@dataclass(frozen=True, slots=True)
class User:
    """A registered user, created by ``register``, or ``imported`` from another system."""

    id: UUID
    """A UUIDv7 (RFC 9562), or any UUID that an imported user brought along."""
    email: EmailAddress
    age: Age
    password_hash: PasswordHash = field(repr=False)
    registered_at: datetime
    """In UTC; any other time raises ``ValueError``."""
    events: tuple[UserRegistered, ...] = field(default=(), compare=False)
    """Events that are stored together with this user."""

    def __post_init__(self) -> None:
        if self.registered_at.utcoffset() != timedelta(0):
            raise ValueError("the time of registration has to be in UTC")

    @staticmethod
    def register(
        *, email: str, password: str, age: int, password_min_length: int = Password.MIN_LENGTH
    ) -> "Registration":
        """Check the data of a new user, as typed; the user exists after ``Registration.complete``.

        ``password_min_length`` is in code points. Raises ``ValidationFailed`` with the violations of all three fields.
        """
        violations = User.violations(email=email, password=password, age=age, password_min_length=password_min_length)
        if violations:
            raise ValidationFailed(violations)
        chosen = Password.choose(password, email=email, min_length=password_min_length)
        return Registration(EmailAddress(email), chosen, Age(age))

    @classmethod
    def imported(
        cls,
        *,
        email: str,
        age: int,
        password_hash: PasswordHash,
        at: datetime,
        user_id: UUID | None = None,
        registered_at: datetime | None = None,
    ) -> Self:
        """Create a user who has registered with another system; there is no event, so no mail is sent.

        ``at`` is the current time in UTC, and the default of ``registered_at``; that of ``user_id`` is a new UUIDv7.
        Raises ``ValidationFailed`` with all violations.
        """
        violations = User.violations(email=email, age=age)
        since = registered_at or at
        if not datetime(1970, 1, 1, tzinfo=UTC) <= since <= at:
            violations.append(Violation("registered_at", "out-of-range", "Must be from 1970 to now."))
        if violations:
            raise ValidationFailed(violations)
        return cls(user_id or uuid7(), EmailAddress(email), Age(age), password_hash, since)

    @staticmethod
    def violations(
        *,
        email: str | None = None,
        password: str | None = None,
        age: int | None = None,
        password_min_length: int = Password.MIN_LENGTH,
    ) -> list[Violation]:
        """Every rule that the given values violate; a value of ``None`` is not checked."""
        violations: list[Violation] = []
        if email is not None:
            with collect(violations):
                EmailAddress(email)
        if password is not None:
            with collect(violations):
                Password.choose(password, email=email, min_length=password_min_length)
        if age is not None:
            with collect(violations):
                Age(age)
        return violations


@dataclass(frozen=True, slots=True)
class Registration:
    """The valid data of a new user, before the password is hashed."""

    email: EmailAddress
    password: Password
    age: Age

    def complete(self, password_hash: PasswordHash, *, at: datetime) -> User:
        """Create the user with the hash of ``password``, a new id and the event; ``at`` is the current time in UTC."""
        user_id = uuid7()
        events = (UserRegistered(user_id, self.email.typed, occurred_at=at),)
        return User(user_id, self.email, self.age, password_hash, registered_at=at, events=events)
