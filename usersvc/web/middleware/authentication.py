"""Authentication by the admin token (RFC 6750)."""

import hashlib
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from usersvc.web.handler_metadata import metadata
from usersvc.web.problems import Unauthorized

if TYPE_CHECKING:
    from usersvc.web.middleware.rate_limit import FailureLimit


class AdminToken:
    """The admin token, of which only a digest is kept."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(token)

    def admit(self, authorization: Sequence[str]) -> None:
        """Return if the request carries the token.

        Args:
            authorization: the values of all ``Authorization`` headers.

        Raises:
            Unauthorized: it does not.
        """
        if not authorization:
            raise Unauthorized("This resource requires the admin token, as Authorization: Bearer.")
        scheme, _, given = authorization[0].partition(" ")
        # Digests have the same length whatever was sent, so the time reveals nothing about the token.
        matches = hmac.compare_digest(_digest(given.strip(" ")), self._digest)
        if len(authorization) > 1 or scheme.lower() != "bearer" or not matches:
            raise Unauthorized(
                "The Authorization header does not contain the admin token, as Bearer.",
                {"WWW-Authenticate": 'Bearer realm="usersvc", error="invalid_token"'},
            )


def authentication(token: AdminToken, failures: "FailureLimit | None") -> Middleware:
    """Require the admin token before anything else of the request is examined, so that the response reveals nothing.

    A request without ``Authorization`` is no attempt to guess the token, and is not counted.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if metadata(request).get("security"):
            authorization = request.headers.getall("Authorization", ())
            if failures is None or not authorization:
                token.admit(authorization)
            else:
                await failures.check(request)
                try:
                    token.admit(authorization)
                except Unauthorized:
                    await failures.count(request)
                    raise
        return await handler(request)

    return authenticate


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
