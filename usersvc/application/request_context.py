"""The request that a piece of work belongs to."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The ids that correlate log lines, spans and mails with a request."""

    request_id: str
    trace_id: str | None = None
    """Of the trace that the request belongs to (W3C Trace Context): 32 hexadecimal digits."""
    span_id: str | None = None
    """Of the request as a part of that trace, when it is recorded as one: 16 hexadecimal digits."""


request_context: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)
"""The request that the current work belongs to; None for background work."""
