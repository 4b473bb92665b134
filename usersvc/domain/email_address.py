"""Email addresses, and when two of them name the same mailbox."""

import re
import unicodedata
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import ClassVar

import email_validator

from usersvc.domain.errors import ValidationFailed, Violation

# Accept the names that RFC 6761 reserves, as the library documents: they concern delivery and not syntax.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

# Default_Ignorable_Code_Point, from DerivedCoreProperties.txt of the Unicode Character Database, version 17.0.0: 4,174
# code points that may be displayed as nothing. The unicodedata module lacks this property.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)

# IANA, IPv6 Address Space; IPv4-mapped and NAT64 addresses are outside of it.
_GLOBAL_UNICAST = IPv6Network("2000::/3")


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """An email address as typed, and the mailbox that it names; addresses of one mailbox are equal.

    The syntax is that of RFC 5321, 5322 and 6531, without a DNS look-up; others raise ``ValidationFailed``.
    """

    MAX_OCTETS: ClassVar[int] = 254
    """RFC 5321 section 4.5.3.1.3 (256 octets including two angle brackets), counted in UTF-8."""

    typed: str = field(compare=False)
    mailbox: str = field(init=False)
    """Decides uniqueness: NFC, case-folded, the domain in its IDNA (ASCII) form."""

    def __post_init__(self) -> None:
        # The length comes first: it bounds the time of parsing and normalizing.
        if len(self.typed.encode("utf-8", "surrogatepass")) > self.MAX_OCTETS:
            raise _refuse("too-long", f"Must have at most {self.MAX_OCTETS} octets in UTF-8.")
        try:
            address = email_validator.validate_email(
                self.typed, check_deliverability=False, allow_quoted_local=True, allow_domain_literal=True, strict=True
            )
        except email_validator.EmailNotValidError:
            raise _refuse("invalid-email", "Must be an email address.") from None
        # It would look like another mailbox (Unicode Technical Standard 39, section 3.1).
        if _INVISIBLE.search(address.local_part):
            raise _refuse("invalid-email", "Must not contain invisible characters before the @.")
        # It would name a host in the mail server's own network.
        literal = getattr(address, "domain_address", None)  # only set for an address literal
        if isinstance(literal, IPv4Address | IPv6Address) and not _is_reachable(literal):
            raise _refuse("invalid-email", "Must not have an IP address that is private or reserved.")
        mailbox = f"{caseless(address.local_part)}@{address.ascii_domain.lower()}"
        object.__setattr__(self, "mailbox", mailbox)


def _refuse(code: str, message: str) -> ValidationFailed:
    return ValidationFailed([Violation("email", code, message)])


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is unicast, globally reachable (RFC 6890) and embeds no IPv4 address."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    # 6to4 and Teredo addresses (RFC 3056, RFC 4380) embed an IPv4 address.
    return address.is_global and address in _GLOBAL_UNICAST and not (address.sixtofour or address.teredo)


def caseless(text: str) -> str:
    """Fold case; canonically equivalent texts stay equal (canonical caseless matching, Unicode 3.13, D145)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
