"""The ids, the access log, and the metrics of requests."""

import logging
import re
import sys
import time
from collections.abc import Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from usersvc.application.request_context import RequestContext, request_context
from usersvc.web.client_address import Network, client_address
from usersvc.web.responses import when_sent

if sys.version_info >= (3, 14):
    from uuid import uuid4
else:
    # Several times as fast as that of the standard library before 3.14.
    from uuid_utils import uuid4

access_log = logging.getLogger("usersvc.access")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)

Observe = Callable[[str, str, int, float], None]
"""Called for each request with the method, the template of the path, the status, and the duration in seconds."""

NO_ROUTE = "(no route)"
"""Logged in place of a template."""

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")
# W3C Trace Context, section 3.2: version 00 has 55 characters; version ff and ids of zeros are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)


def request_log(observe: Observe, trusted_proxies: Sequence[Network]) -> Middleware:
    """Give each request an id, its own if that is valid, and log the request when its response has been sent."""

    @web.middleware
    async def log_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        own_id = request.headers.get("X-Request-ID", "")
        request_id = request[REQUEST_ID] = own_id if _VALID_REQUEST_ID.fullmatch(own_id) else str(uuid4())
        traced = _TRACEPARENT.fullmatch(request.headers.get("traceparent", ""))
        request_context.set(RequestContext(request_id, traced and traced["trace"]))
        response = await handler(request)
        response.headers["X-Request-ID"] = request_id
        # Local variables, so that a streamed body does not keep the request and the response in a reference cycle.
        method, route, status = request.method, route_of(request) or NO_ROUTE, response.status
        logs = access_log.isEnabledFor(logging.INFO)
        client = client_address(request, trusted_proxies) if logs else None

        def sent(size: int, complete: bool) -> None:
            seconds = time.perf_counter() - started
            observe(method, route, status, seconds)
            if logs:
                access_log.info(
                    "request" if complete else "request broken off",
                    extra={
                        "method": method,
                        "route": route,
                        "status": status,
                        "milliseconds": round(seconds * 1000, 1),
                        "bytes": size,
                        "client": None if client is None else str(client),
                        # A streamed response may end in another context.
                        "request_id": request_id,
                    },
                )

        when_sent(request, response, sent)
        return response

    return log_request


def route_of(request: web.Request) -> str | None:
    """The template of the path; the path itself may contain addresses, or secrets sent by mistake."""
    resource = request.match_info.route.resource
    return resource.canonical if resource else None
