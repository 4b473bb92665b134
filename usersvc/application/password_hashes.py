"""Which password hashes of other systems are accepted for import."""

import re

from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.password import PasswordHash

MAX_HASH_COST = 16
"""The highest accepted cost of bcrypt: verifying takes about five seconds, and twice as long per further step."""

# The salt has 128 bits and the digest 184 bits, so the last character of each encodes fewer than six bits.
_BCRYPT = re.compile(
    r"\$2[aby]\$(?P<cost>0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_OURS = re.compile(r"\$hmac-sha384-bcrypt\$([0-9a-f]{8})?(?=\$2b\$)")


def parse_password_hash(text: str) -> PasswordHash:
    """Accept a hash that the service can verify: a bcrypt hash (``$2a$``, ``$2b$``, ``$2y$``) or one of its own.

    Raises:
        ValidationFailed: the hash has another form, or a cost above ``MAX_HASH_COST``.
    """
    ours = _OURS.match(text)
    bcrypt = _BCRYPT.fullmatch(text, ours.end() if ours else 0)
    if bcrypt is None:
        message = "Must be a complete bcrypt hash: $2a$, $2b$ or $2y$, with its cost."
        raise ValidationFailed([Violation("password_hash", "unknown-hash", message)])
    if int(bcrypt["cost"]) > MAX_HASH_COST:
        raise ValidationFailed(
            [Violation("password_hash", "cost-too-high", f"The cost must be at most {MAX_HASH_COST}.")]
        )
    return PasswordHash(text)
