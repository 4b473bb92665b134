"""Distributed tracing (W3C Trace Context)."""

from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from usersvc.application.request_context import RequestContext, request_context
from usersvc.web.middleware.request_log import REQUEST_ID, route_of
from usersvc.web.responses import when_sent


class RequestSpan(Protocol):
    """A request as a part of a trace."""

    trace_id: str | None
    span_id: str | None
    """None if the request is not recorded."""

    def end(self, status: int | None) -> None:
        """End the span with the status of the response; None if the client disconnected before there was one."""


Trace = Callable[[str, str, str | None, Mapping[str, str]], RequestSpan]
"""Starts the span of a request, given the method, the scheme, the template of the path and the header fields."""


def tracing(trace: Trace) -> Middleware:
    """Record each request as a span, which ends when the response has been sent."""

    @web.middleware
    async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        span = trace(request.method, request.scheme, route_of(request), request.headers)
        request_context.set(RequestContext(request[REQUEST_ID], span.trace_id, span.span_id))
        try:
            response = await handler(request)
        except BaseException:
            span.end(None)
            raise
        status = response.status
        when_sent(request, response, lambda _size, _complete: span.end(status))
        return response

    return trace_request
