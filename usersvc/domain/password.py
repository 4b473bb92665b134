"""Passwords: the rules for choosing one, and the list of common passwords."""

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar, NewType, Self

from usersvc.domain.email_address import EmailAddress, caseless
from usersvc.domain.errors import ValidationFailed, Violation

PasswordHash = NewType("PasswordHash", str)
"""A hashed password, including the name of the scheme; passwords are stored in no other form."""


@dataclass(frozen=True, slots=True)
class Password:
    """A password in plaintext that satisfies the rules; it appears in no repr and no error message."""

    MIN_LENGTH: ClassVar[int] = 8
    """Code points; OWASP ASVS 5.0, 6.2.1. The service can be configured to require more, but not fewer."""
    MAX_LENGTH: ClassVar[int] = 256
    """Code points; NIST SP 800-63B-4 requires verifiers to permit at least 64."""

    clear: str = field(repr=False)
    """In NFC, so that the same password from different keyboards is equal (NIST SP 800-63B-4, section 3.1.1.2)."""

    @classmethod
    def choose(cls, typed: str, *, email: str | None = None, min_length: int = MIN_LENGTH) -> Self:
        """Check a new password: any character is allowed, and there are no composition rules.

        Its length is counted in code points after normalization. It must not repeat the user's address, which is given
        as typed, valid or not. Raises ``ValidationFailed`` with every violated rule.
        """
        violations: list[Violation] = []

        def refuse(code: str, message: str) -> None:
            violations.append(Violation("password", code, message))

        # Normalization takes quadratic time in the worst case. NFC composes at most four code points into one, so a
        # text of more than four times the maximum is too long in any form.
        clear = unicodedata.normalize("NFC", typed) if len(typed) <= 4 * cls.MAX_LENGTH else typed
        if len(clear) < min_length:
            refuse("too-short", f"Must have at least {min_length} characters.")
        if len(clear) > cls.MAX_LENGTH:
            refuse("too-long", f"Must have at most {cls.MAX_LENGTH} characters.")
        else:
            if any(unicodedata.category(character) == "Cs" for character in clear):
                refuse("invalid-character", "Must not contain an unpaired surrogate.")
            if caseless(clear) in _common_passwords():
                refuse("common-password", "Must not be one of the commonly used passwords.")
            if email is not None and _repeats(clear, email):
                refuse("same-as-email", "Must not be the email address or the part of it before the @.")
        if violations:
            raise ValidationFailed(violations)
        return cls(clear)


@cache
def _common_passwords() -> frozenset[str]:
    """More than the 3000 that OWASP ASVS 5.0, 6.2.4 requires; ``common_passwords.LICENSES`` names the sources."""
    return frozenset(files("usersvc.domain").joinpath("common_passwords.txt").read_text("utf-8").splitlines())


def _repeats(password: str, email: str) -> bool:
    """Whether a password is an address or its local part, in any spelling."""
    if len(email) > EmailAddress.MAX_OCTETS:
        return False  # the address is rejected anyway
    local = email.rpartition("@")[0]
    unquoted = re.sub(r"\\(.)", r"\1", local[1:-1]) if local.startswith('"') else local
    if caseless(password) in {caseless(form) for form in (email, local, unquoted, f'"{unquoted}"') if form}:
        return True
    try:
        return EmailAddress(password) == EmailAddress(email)
    except ValidationFailed:
        return False
