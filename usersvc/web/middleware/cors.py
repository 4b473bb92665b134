"""Cross-origin requests (CORS protocol of the Fetch standard), for a list of exact origins."""

from collections.abc import Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

ALLOWED = ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID", "traceparent")
"""Request headers that pages may send."""
EXPOSED = (
    "Idempotency-Replayed",
    "Link",
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-ID",
)
"""Response headers that pages may read."""
MAX_AGE = 600
"""How long a browser may cache the response to a preflight request, in seconds."""


def allow(app: web.Application, origins: Sequence[str]) -> None:
    """Let pages of these origins use the application, without cookies.

    Args:
        app: with all its routes.
        origins: as browsers write them (RFC 6454, section 6.2).
    """
    import aiohttp_cors  # noqa: PLC0415  # only used if an origin is allowed

    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]  # the library's constructor has no types
        expose_headers=EXPOSED, allow_headers=ALLOWED, max_age=MAX_AGE
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        cors.add(route)
    app.on_response_prepare.append(_add_vary)


async def _add_vary(_: web.Request, response: web.StreamResponse) -> None:
    """Tell caches that the response depends on the origin (Fetch standard, "CORS protocol and HTTP caches")."""
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)


@web.middleware
async def refuse_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to a preflight request that is not allowed as to any other OPTIONS request.

    Raises:
        web.HTTPMethodNotAllowed: instead of the 403 of the library, which is not a code of this service.
    """
    try:
        return await handler(request)
    except web.HTTPForbidden:
        resource = request.match_info.route.resource
        methods = {route.method for route in resource or ()} - {hdrs.METH_OPTIONS}
        raise web.HTTPMethodNotAllowed(request.method, methods) from None
