"""The user, and every business rule about users.

``User.register`` is the only way a new user comes to be; ``User.imported`` is for those whom another system has
registered. The rules are the constants and methods of the value
objects below; the OpenAPI document reads the constants from here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self, TypeVar
from uuid import UUID

from uuid_utils.compat import uuid7

from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.stored_hash import stored_hash

__all__ = ("Age", "EmailAddress", "Password", "PasswordHash", "Registration", "User")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Age:
    """An age in whole years at which a person may register."""

    MIN: ClassVar[int] = 18
    MAX: ClassVar[int] = 130

    years: int

    def __post_init__(self) -> None:
        """Raises:
        ValidationFailed: the age is outside ``MIN`` to ``MAX``.
        """
        # By its type, as True and 30.0 would pass for numbers in the range.
        if type(self.years) is not int or not self.MIN <= self.years <= self.MAX:
            raise ValidationFailed([Violation("age", "out-of-range", f"Must be from {self.MIN} to {self.MAX}.")])


@dataclass(frozen=True, slots=True)
class User:
    """A registered person."""

    FIRST_REGISTRATION: ClassVar[datetime] = datetime(1970, 1, 1, tzinfo=UTC)
    """Nobody has registered anywhere before; a time that says so is a mistake."""

    id: UUID
    """A UUIDv7 (RFC 9562), unless the user has brought another one from elsewhere."""
    email: EmailAddress
    age: Age
    password_hash: PasswordHash = field(repr=False)
    registered_at: datetime
    """In UTC."""
    events: tuple[UserRegistered, ...] = field(default=(), compare=False)
    """What has happened to this user and nobody has been told yet."""

    def __post_init__(self) -> None:
        """Raises:
        ValueError: the time of registration is not in UTC.
        """
        if self.registered_at.utcoffset() != timedelta(0):
            raise ValueError("the time of registration has to be in UTC")

    @staticmethod
    def register(
        *, email: str, password: str, age: int, password_min_length: int = Password.MIN_LENGTH
    ) -> "Registration":
        """Check everything that a person hands in.

        The answer is what a ``User`` is made from once the password is hashed; hashing is slow and belongs to a
        port, so it happens between the two.

        Args:
            email: as typed.
            password: as typed, in the clear.
            age: in whole years.
            password_min_length: in code points; at least ``Password.MIN_LENGTH``.

        Raises:
            ValidationFailed: with all violations of all three at once.
        """
        broken: list[Violation] = []
        address = _made(lambda: EmailAddress(email), broken)
        chosen = _made(lambda: Password.choose(password, email=email, min_length=password_min_length), broken)
        years = _made(lambda: Age(age), broken)
        if address is None or chosen is None or years is None:
            raise ValidationFailed(broken)
        return Registration(email=address, password=chosen, age=years)

    @classmethod
    def imported(
        cls,
        *,
        email: str,
        age: int,
        password_hash: str,
        at: datetime,
        user_id: UUID | None = None,
        registered_at: datetime | None = None,
    ) -> Self:
        """Take over a person whom another system has registered: nobody is told, so there are no events.

        Args:
            email: as typed.
            age: in whole years.
            password_hash: see ``stored_hash``.
            at: the time, in UTC.
            user_id: the one that the person has; a new one by default.
            registered_at: when that was, in UTC; by default ``at``.

        Raises:
            ValidationFailed: with all violations at once.
        """
        broken: list[Violation] = []
        address = _made(lambda: EmailAddress(email), broken)
        years = _made(lambda: Age(age), broken)
        kept = _made(lambda: PasswordHash(stored_hash(password_hash)), broken)
        since = _made(lambda: _past(registered_at or at, at), broken)
        if address is None or years is None or kept is None or since is None:
            raise ValidationFailed(broken)
        return cls(id=user_id or uuid7(), email=address, age=years, password_hash=kept, registered_at=since)

    @staticmethod
    def violations(
        *,
        email: str | None = None,
        password: str | None = None,
        age: int | None = None,
        password_hash: str | None = None,
        password_min_length: int = Password.MIN_LENGTH,
    ) -> tuple[Violation, ...]:
        """Every rule that the given values break; what is ``None`` is not judged."""
        broken: list[Violation] = []
        if email is not None:
            _made(lambda: EmailAddress(email), broken)
        if password is not None:
            _made(lambda: Password.choose(password, email=email, min_length=password_min_length), broken)
        if age is not None:
            _made(lambda: Age(age), broken)
        if password_hash is not None:
            _made(lambda: stored_hash(password_hash), broken)
        return tuple(broken)


def _past(registered_at: datetime, at: datetime) -> datetime:
    """A time of registration that can be one."""
    if not User.FIRST_REGISTRATION <= registered_at <= at:
        raise ValidationFailed([Violation("registered_at", "out-of-range", "Must be from 1970 to now.")])
    return registered_at


def _made(make: Callable[[], T], broken: list[Violation]) -> T | None:
    """What can be made, or else None and the rules that forbid it."""
    try:
        return make()
    except ValidationFailed as refused:
        broken += refused.violations
        return None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a person handed in, every rule passed: a user but for the hash of the password."""

    email: EmailAddress
    password: Password
    age: Age

    def complete(self, password_hash: PasswordHash, *, at: datetime) -> User:
        """Make the user, with a new id.

        Args:
            password_hash: of ``password``.
            at: the time of registration, in UTC.
        """
        user_id = uuid7()
        return User(
            id=user_id,
            email=self.email,
            age=self.age,
            password_hash=password_hash,
            registered_at=at,
            events=(UserRegistered(user_id=user_id, email=self.email.typed, occurred_at=at),),
        )
