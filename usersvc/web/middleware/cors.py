"""Cross-origin requests (the Fetch standard's CORS protocol), for the origins that are named exactly."""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import hdrs, web

ALLOWED = ("Authorization", "Content-Type", "Idempotency-Key", "X-Request-ID", "traceparent")
"""Headers that pages may send."""
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
"""Headers that pages may read."""
MAX_AGE = 600
"""How long a browser need not ask again, in seconds."""


def allow(app: web.Application, origins: Sequence[str]) -> None:
    """Let pages of these origins use the application; without cookies, which nothing here reads.

    Args:
        app: with all its routes.
        origins: as browsers write them (RFC 6454, section 6.2).
    """
    import aiohttp_cors  # noqa: PLC0415  # for those who allow any

    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]  # the library's constructor has no types
        expose_headers=EXPOSED, allow_headers=ALLOWED, max_age=MAX_AGE
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        cors.add(route)
    app.on_response_prepare.append(_varies)


async def _varies(_: web.Request, response: web.StreamResponse) -> None:
    """Whatever is kept of the answer is for one origin (the Fetch standard, "CORS protocol and HTTP caches")."""
    response.headers.add(hdrs.VARY, hdrs.ORIGIN)


@web.middleware
async def refused_as_any_options(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer a preflight request that is not allowed as what it is otherwise: a method that the resource lacks.

    Raises:
        web.HTTPMethodNotAllowed: instead of the library's 403, which is no problem of this service.
    """
    try:
        return await handler(request)
    except web.HTTPForbidden:
        resource = request.match_info.route.resource
        methods = {route.method for route in resource or ()} - {hdrs.METH_OPTIONS}
        raise web.HTTPMethodNotAllowed(request.method, methods) from None
