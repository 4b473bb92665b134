"""The user, and every business rule about users.

``User.register`` is the only way a new user comes to be; ``User.imported`` is for those whom another system has
registered. The rules are the constants and methods of the value
objects below; the OpenAPI document reads the constants from here.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import ClassVar, NewType, Self, TypeVar
from uuid import UUID

import email_validator
from uuid_utils.compat import uuid7

from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.events import UserRegistered
from usersvc.domain.stored_hash import stored_hash

T = TypeVar("T")

PasswordHash = NewType("PasswordHash", str)
"""A password after hashing, with the name of its scheme; the only form of it that is ever stored."""

# The rule is syntax alone (RFC 5321, 5322, 6531). The library also refuses names that RFC 6761 reserves, which says
# something about delivery; emptying this list is the way its documentation gives to switch that off.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

# Default_Ignorable_Code_Point, from DerivedCoreProperties.txt of the Unicode Character Database, version 17.0.0: 4,174
# code points that a program may show as nothing at all. The unicodedata module does not have this property.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

_GLOBAL_UNICAST = IPv6Network("2000::/3")
"""All that is assigned for global unicast (IANA, IPv6 Address Space); IPv4-mapped and NAT64 addresses lie outside."""


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """An email address as typed, and the mailbox it names.

    Two addresses are equal when they name one mailbox, however they are spelt.
    """

    MAX_OCTETS: ClassVar[int] = 254
    """RFC 5321 section 4.5.3.1.3 (a path of 256 octets, less its two angle brackets), counted in UTF-8."""

    typed: str = field(compare=False)
    mailbox: str = field(init=False)
    """What decides uniqueness: NFC, case-folded, the domain in its IDNA (ASCII) form."""

    def __post_init__(self) -> None:
        """Parse the address by the syntax of RFC 5321, 5322 and 6531, without a DNS look-up.

        Two kinds of address that the syntax allows are refused as well: a local part with invisible characters, which
        looks like another mailbox (Unicode Technical Standard 39, section 3.1), and an address literal that is not
        globally reachable, which would name a host of the mail server's own network.

        Raises:
            ValidationFailed: it is not an address, is one of these two kinds, or is longer than ``MAX_OCTETS``.
        """
        # Its length comes first, so that the grammar and Unicode's rules are never run over much.
        if len(self.typed.encode("utf-8", "surrogatepass")) > self.MAX_OCTETS:
            raise ValidationFailed(
                [Violation("email", "too-long", f"Must have at most {self.MAX_OCTETS} octets in UTF-8.")]
            )
        try:
            address = email_validator.validate_email(
                self.typed,
                check_deliverability=False,
                allow_quoted_local=True,
                allow_domain_literal=True,
                strict=True,
            )
        except email_validator.EmailNotValidError:
            raise ValidationFailed([Violation("email", "invalid-email", "Must be an email address.")]) from None
        if _INVISIBLE.search(address.local_part):
            message = "Must not contain invisible characters before the @."
            raise ValidationFailed([Violation("email", "invalid-email", message)])
        literal = getattr(address, "domain_address", None)  # set for an address literal alone
        if isinstance(literal, IPv4Address | IPv6Address) and not _is_reachable(literal):
            message = "Must not have an IP address that is private or reserved."
            raise ValidationFailed([Violation("email", "invalid-email", message)])
        mailbox = f"{_caseless(address.local_part)}@{address.ascii_domain.lower()}"
        object.__setattr__(self, "mailbox", mailbox)


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is unicast and globally reachable (RFC 6890), and does not embed one that need not be."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return True
    # A 6to4 or Teredo address (RFC 3056, RFC 4380) stands for an IPv4 address.
    return address in _GLOBAL_UNICAST and not (address.sixtofour or address.teredo)


def _caseless(text: str) -> str:
    """Fold case so that canonically equal spellings stay equal (Unicode Standard, section 3.13, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())


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
class Password:
    """A password fit for use, in the clear. It never shows itself: not in a repr, not in an error."""

    MIN_LENGTH: ClassVar[int] = 8
    """Code points; OWASP ASVS 5.0, 6.2.1. The service may be set to ask for more, never for fewer."""
    MAX_LENGTH: ClassVar[int] = 256
    """Code points; NIST SP 800-63B-4 asks verifiers to permit at least 64."""

    clear: str = field(repr=False)
    """In NFC, so that one password typed on two keyboards is one password (NIST SP 800-63B-4, section 3.1.1.2)."""

    @classmethod
    def choose(cls, typed: str, *, email: str | None = None, min_length: int = MIN_LENGTH) -> Self:
        """Check a password that a person has chosen; any character is allowed and no mixture is asked for.

        Args:
            typed: the password as it came; it is brought into NFC and each code point counts as one.
            email: the address that it may not repeat, as typed, whether or not that is a good one.
            min_length: in code points.

        Raises:
            ValidationFailed: with every rule that it breaks.
        """
        broken: list[Violation] = []

        def refuse(code: str, message: str) -> None:
            broken.append(Violation("password", code, message))

        # NFC takes long for text made to that end. It composes at most four code points into one, so that what is
        # more than four times too long stays too long.
        clear = unicodedata.normalize("NFC", typed) if len(typed) <= 4 * cls.MAX_LENGTH else typed
        if len(clear) < min_length:
            refuse("too-short", f"Must have at least {min_length} characters.")
        if len(clear) > cls.MAX_LENGTH:
            refuse("too-long", f"Must have at most {cls.MAX_LENGTH} characters.")
        else:
            if any(unicodedata.category(character) == "Cs" for character in clear):
                refuse("invalid-character", "Must not contain half of a surrogate pair, which is no character.")
            if _caseless(clear) in _common_passwords():
                refuse("common-password", "Must not be one of the commonly used passwords.")
            if email is not None and _repeats(clear, email):
                refuse("same-as-email", "Must not be the email address or the part of it before the @.")
        if broken:
            raise ValidationFailed(broken)
        return cls(clear)


@cache
def _common_passwords() -> frozenset[str]:
    """More than the 3000 that OWASP ASVS 5.0, 6.2.4 asks for; sources and licences lie beside the file."""
    return frozenset(files("usersvc.domain").joinpath("common_passwords.txt").read_text("utf-8").splitlines())


def _repeats(password: str, email: str) -> bool:
    """Whether a password is an address or the local part of one, in any spelling of either."""
    if len(email) > EmailAddress.MAX_OCTETS:
        return False  # the address is refused for itself
    local = email.rpartition("@")[0]
    bare = re.sub(r"\\(.)", r"\1", local[1:-1]) if local.startswith('"') else local
    if _caseless(password) in {_caseless(form) for form in (email, local, bare, f'"{bare}"') if form}:
        return True
    try:
        return EmailAddress(password) == EmailAddress(email)
    except ValidationFailed:
        return False


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
