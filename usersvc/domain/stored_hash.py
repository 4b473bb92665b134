"""Which hashes of passwords may be taken over from elsewhere."""

import re

from usersvc.domain.errors import ValidationFailed, Violation

MAX_HASH_COST = 16
"""The highest cost of bcrypt that is taken over: verifying takes some five seconds, and twice as long with each one
more; at bcrypt's own limit of 31, a day and a half."""

# The salt has 128 bits and the digest 184, so that the last letter of each has some that are always 0.
_BCRYPT = re.compile(
    r"\$2[aby]\$(?P<cost>0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]"
)
_OURS = re.compile(r"\$hmac-sha384-bcrypt\$([0-9a-f]{8})?(?=\$2b\$)")


def stored_hash(text: str) -> str:
    """A hash that passwords can be verified against, as it is: of bcrypt's own forms, or this service's.

    Raises:
        ValidationFailed: it is of another form, or of a cost above ``MAX_HASH_COST``.
    """
    ours = _OURS.match(text)
    bcrypt = _BCRYPT.fullmatch(text, ours.end() if ours else 0)
    if bcrypt is None:
        raise ValidationFailed(
            [
                Violation(
                    "password_hash", "unknown-hash", "Must be a whole bcrypt hash: $2a$, $2b$ or $2y$, with its cost."
                )
            ]
        )
    if int(bcrypt["cost"]) > MAX_HASH_COST:
        raise ValidationFailed(
            [Violation("password_hash", "cost-too-high", f"Must be of a cost of at most {MAX_HASH_COST}.")]
        )
    return text
