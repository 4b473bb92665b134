"""The security headers of every response (OWASP REST Security Cheat Sheet, "Security Headers")."""

from aiohttp import web
from aiohttp.typedefs import Handler

HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    # For browsers that are made to show a response as a page; the docs page has a policy of its own.
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Of every response that does not set them itself."""


@web.middleware
async def security_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Add ``HEADERS``, and ``Strict-Transport-Security`` over https."""
    response = await handler(request)
    for name, value in HEADERS:
        response.headers.setdefault(name, value)
    if request.secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response
