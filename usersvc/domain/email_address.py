"""Email addresses."""

import re
import unicodedata
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import ClassVar

import email_validator

from usersvc.domain.errors import ValidationFailed, Violation

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
        mailbox = f"{caseless(address.local_part)}@{address.ascii_domain.lower()}"
        object.__setattr__(self, "mailbox", mailbox)


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is unicast and globally reachable (RFC 6890), and does not embed one that need not be."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return True
    # A 6to4 or Teredo address (RFC 3056, RFC 4380) stands for an IPv4 address.
    return address in _GLOBAL_UNICAST and not (address.sixtofour or address.teredo)


def caseless(text: str) -> str:
    """Fold case so that canonically equal spellings stay equal (Unicode Standard, section 3.13, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
