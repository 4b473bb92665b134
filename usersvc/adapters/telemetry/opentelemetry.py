"""Traces with OpenTelemetry: of requests, and of their calls to the ports (an ``Instrument``).

Background work is not traced, except for the mail that a request leads to. Spans contain names, durations and outcomes,
but no data: no address, path, query or id. The standard variables ``OTEL_...`` configure the export. This module needs
the extra ``otel``.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from types import TracebackType
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import (
    HTTP_REQUEST_METHOD,
    HTTP_RESPONSE_STATUS_CODE,
    HTTP_ROUTE,
)
from opentelemetry.semconv.attributes.service_attributes import SERVICE_NAME, SERVICE_VERSION
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, StatusCode, TraceFlags

import usersvc
from usersvc.application.idempotency import IdempotencyKeyUsed
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered

log = logging.getLogger(__name__)

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""Methods that are recorded; clients can send any other."""

HEADER_LOGGERS = (
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)
"""Loggers that write what clients sent, in full."""

EXPECTED_ERRORS = (EmailAlreadyRegistered, IdempotencyKeyUsed)
"""Regular outcomes that are raised; they do not mark a span as failed."""

SERVER_ERROR = 500
"""The first status of server errors."""

FLUSH_TIMEOUT = 1.0
"""How long a stop waits for the export of the last spans, in seconds."""

LOG_INTERVAL = 60.0
"""The shortest interval between equal log lines about a failing collector, in seconds."""


class OpenTelemetryTracing:
    """Exports the spans of this process by OTLP over HTTP; an asynchronous context manager.

    A thread exports them from a bounded queue: a slow or unreachable collector loses spans but delays no request.
    """

    def __init__(self) -> None:
        """Configure the export.

        Raises:
            ValueError: a variable ``OTEL_...`` has an invalid value.
        """
        ours = Resource.create({SERVICE_NAME: "usersvc", SERVICE_VERSION: usersvc.__version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        logging.getLogger("opentelemetry.util.re").addFilter(_without_values)
        for name in HEADER_LOGGERS:
            logging.getLogger(name).addFilter(_discard)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_RateLimited())
        self._tracer = self._provider.get_tracer("usersvc", usersvc.__version__)

    async def __aenter__(self) -> Self:
        """Nothing to open: the export has started."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Export the remaining spans, within ``FLUSH_TIMEOUT``."""
        # The library's shutdown waits for up to 30 seconds.
        flushing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_TIMEOUT)
        if flushing.is_alive():
            log.warning("discarding the last spans at shutdown: the collector does not respond")

    def request(self, method: str, scheme: str, route: str | None, headers: Mapping[str, str]) -> "RequestSpan":
        """Start the span of a request and make it the current span of this context.

        Args:
            method: as received.
            scheme: ``http`` or ``https``.
            route: the template of the path, if a route matches.
            headers: of the request; ``traceparent`` names the parent.
        """
        known = method in METHODS
        verb = method if known else "HTTP"
        attributes = {HTTP_REQUEST_METHOD: method if known else "_OTHER", URL_SCHEME: scheme}
        if route is not None:
            attributes[HTTP_ROUTE] = route
        # Not the current context, which can be that of an earlier request.
        parent = extract(headers, Context())
        span = self._tracer.start_span(
            verb if route is None else f"{verb} {route}", parent, SpanKind.SERVER, attributes
        )
        attach(trace.set_span_in_context(span, parent))
        return RequestSpan(span)

    @contextmanager
    def storage_call(self, operation: str) -> Iterator[None]:
        with self._child_span(f"storage {operation}"):
            yield

    @contextmanager
    def hashing(self, operation: str) -> Iterator[None]:
        with self._child_span(f"hashing {operation}"):
            yield

    @contextmanager
    def notification(self, _operation: str) -> Iterator[None]:
        """A span in the trace of the request that led to the mail, if that was recorded."""
        context = request_context.get()
        if context is None or context.trace_id is None or context.span_id is None:
            yield
            return
        request = SpanContext(
            int(context.trace_id, 16),
            int(context.span_id, 16),
            is_remote=True,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )
        parent = trace.set_span_in_context(NonRecordingSpan(request), Context())
        with _ending(self._tracer.start_span("notification", parent, SpanKind.CONSUMER)):
            yield

    @contextmanager
    def _child_span(self, name: str) -> Iterator[None]:
        if not trace.get_current_span().is_recording():
            # Background work, such as polling the outbox.
            yield
            return
        with _ending(self._tracer.start_span(name)):
            yield


class RequestSpan:
    """The span of a request."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else None
        self.span_id = trace.format_span_id(context.span_id) if span.is_recording() else None

    def end(self, status: int | None) -> None:
        """End it; the status is None if the client disconnected before the response."""
        if status is not None:
            self._span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
            if status >= SERVER_ERROR:
                self._span.set_attribute(ERROR_TYPE, str(status))
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _RateLimited(logging.Filter):
    """Passes lines with the same message once per ``LOG_INTERVAL``: a collector may be unreachable for days."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        last = self._passed.get(record.msg)
        if last is not None and record.created - last < LOG_INTERVAL:
            return False
        self._passed[record.msg] = record.created
        return True


def _discard(_: logging.LogRecord) -> bool:
    """A filter that discards every record."""
    return False


def _without_values(record: logging.LogRecord) -> bool:
    """Remove the value from warnings about invalid settings: a header for the collector may contain a key."""
    record.msg, record.args = (
        "OTEL_EXPORTER_OTLP_HEADERS or a similar variable has an entry that is not name=value",
        (),
    )
    return True


@contextmanager
def _ending(span: Span) -> Iterator[None]:
    """Make the span current and end it; of an error only the type is recorded, as its message may contain data."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            span.set_attribute(ERROR_TYPE, type(error).__name__)
            if not isinstance(error, EXPECTED_ERRORS):
                span.set_status(StatusCode.ERROR)
            raise
