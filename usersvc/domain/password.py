"""Passwords, the common ones among them, and their hashes."""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar, NewType, Self

from usersvc.domain.email_address import EmailAddress, caseless
from usersvc.domain.errors import ValidationFailed, Violation

PasswordHash = NewType("PasswordHash", str)
"""A password after hashing, with the name of its scheme; the only form of it that is ever stored."""


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
            if caseless(clear) in _common_passwords():
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
    if caseless(password) in {caseless(form) for form in (email, local, bare, f'"{bare}"') if form}:
        return True
    try:
        return EmailAddress(password) == EmailAddress(email)
    except ValidationFailed:
        return False
