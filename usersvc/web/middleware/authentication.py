"""Who may read the users: whoever sends the admin token (RFC 6750)."""

import hashlib
import hmac
from collections.abc import Sequence

from usersvc.web.problems import Unauthorized


class AdminToken:
    """The token, and the answer to those who do not have it."""

    def __init__(self, token: str) -> None:
        """Keep a token.

        Args:
            token: visible ASCII.
        """
        self._digest = _digest(token)

    def admit(self, authorization: Sequence[str]) -> None:
        """Return if the request carries the token.

        Args:
            authorization: the values of all headers of that name.

        Raises:
            Unauthorized: it does not.
        """
        if not authorization:
            raise Unauthorized("This needs the admin token, as Authorization: Bearer.")
        scheme, _, given = authorization[0].partition(" ")
        # Digests are of one length whatever was sent, so that the time tells nothing about the token.
        matches = hmac.compare_digest(_digest(given.strip(" ")), self._digest)
        if len(authorization) > 1 or scheme.lower() != "bearer" or not matches:
            raise Unauthorized(
                "The Authorization header does not hold the admin token, as Bearer.",
                {"WWW-Authenticate": 'Bearer realm="usersvc", error="invalid_token"'},
            )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
