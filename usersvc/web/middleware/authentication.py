"""Authentication by the admin token (RFC 6750)."""

import hashlib
import hmac
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from usersvc.web.middleware import metadata
from usersvc.web.middleware.rate_limit import RateLimit
from usersvc.web.problems import RequestRefused

MAX_FAILURES = "10/minute"
"""Wrong admin tokens of one client address."""


def authentication(token: str, failures: RateLimit | None) -> Middleware:
    """Require the admin token before anything else of the request is examined, so that the response reveals nothing.

    Args:
        token: the admin token.
        failures: counts wrong tokens by client address, and over the limit refuses right ones too; None: no limit.
    """
    # Not the token itself, which could be in a traceback.
    expected = digest(token)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if metadata(handler).get("security"):
            given = request.headers.getall("Authorization", ())
            if not given:
                # Not an attempt to guess the token, so not counted.
                raise RequestRefused("unauthorized")
            if failures is not None:
                failures.check(request)
            if not matches(given, expected):
                if failures is not None:
                    await failures.count(request)
                raise RequestRefused(
                    "unauthorized",
                    "The Authorization header does not contain the admin token, as Bearer.",
                    {"WWW-Authenticate": 'Bearer realm="usersvc", error="invalid_token"'},
                )
        return await handler(request)

    return authenticate


def matches(authorization: Sequence[str], expected: bytes) -> bool:
    """Whether the values of all ``Authorization`` headers are one token, given the ``digest`` of the expected one."""
    scheme, _, given = authorization[0].partition(" ")
    # Digests have the same length whatever was sent, so the time reveals nothing about the token.
    equal = hmac.compare_digest(digest(given.strip(" ")), expected)
    return equal and scheme.lower() == "bearer" and len(authorization) == 1


def digest(token: str) -> bytes:
    """The SHA-256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
