"""Cross-origin requests (CORS protocol of the Fetch standard), for a list of exact origins."""

from collections.abc import Sequence

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler

# What pages may send and read.
OPTIONS = {
    "allow_headers": ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID", "traceparent"),
    "expose_headers": (
        *("Idempotency-Replayed", "Link", "Location", "X-Request-ID"),
        *("RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
    ),
    # How long a browser may cache the response to a preflight request, in seconds.
    "max_age": 600,
}


def allow(app: web.Application, origins: Sequence[str]) -> None:
    """Let pages of these origins (RFC 6454, section 6.2) use the routes of the application, without cookies."""
    import aiohttp_cors  # noqa: PLC0415  # only used if an origin is allowed

    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, OPTIONS))
    for route in list(app.router.routes()):
        cors.add(route)
    app.on_response_prepare.append(_add_vary)


async def _add_vary(_: web.Request, response: web.StreamResponse) -> None:
    # The response depends on the origin (Fetch standard, "CORS protocol and HTTP caches").
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)


@web.middleware
async def refuse_preflight(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond with 405 to a preflight request that is not allowed; the 403 of the library has no code here."""
    try:
        return await handler(request)
    except web.HTTPForbidden:
        resource = request.match_info.route.resource
        methods = {route.method for route in resource or ()} - {hdrs.METH_OPTIONS}
        raise web.HTTPMethodNotAllowed(request.method, methods) from None
