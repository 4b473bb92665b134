"""Traces with OpenTelemetry: of requests, and of their calls to the ports.

Background work is not traced, except for the mail that a request leads to. Spans contain names, durations and outcomes,
but no data: no address, path, query or id. The standard variables ``OTEL_...`` configure the export. This module needs
the extra ``otel``.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPMethod, HTTPStatus
from threading import Thread
from typing import Self

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE, HTTP_ROUTE
from opentelemetry.semconv.attributes.url_attributes import URL_SCHEME
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import usersvc
from usersvc.application.idempotency import IdempotencyKeyUsed
from usersvc.application.request_context import request_context
from usersvc.domain.errors import EmailAlreadyRegistered

log = logging.getLogger(__name__)

EXPECTED_ERRORS = (EmailAlreadyRegistered, IdempotencyKeyUsed)
"""Regular outcomes that are raised; they do not mark a span as failed."""

FLUSH_TIMEOUT = 1.0
"""How long a stop waits for the export of the last spans, in seconds."""


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
        for name in ("opentelemetry.baggage", "opentelemetry.trace"):
            # Their warnings contain the headers that clients sent.
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        # A collector may be unreachable for days: log only final errors, and at most one a minute.
        self._minute_of_last_error = 0.0
        exporter_log = logging.getLogger(OTLPSpanExporter.__module__)
        exporter_log.setLevel(logging.ERROR)
        exporter_log.addFilter(self._is_first_in_its_minute)
        self._tracer = self._provider.get_tracer("usersvc", usersvc.__version__)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Export the remaining spans, within ``FLUSH_TIMEOUT``."""
        # The library's shutdown waits for up to 30 seconds.
        flushing = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        flushing.start()
        await asyncio.to_thread(flushing.join, FLUSH_TIMEOUT)
        if flushing.is_alive():
            log.warning("discarding the last spans at shutdown: the collector does not respond")

    def _is_first_in_its_minute(self, record: logging.LogRecord) -> bool:
        previous, self._minute_of_last_error = self._minute_of_last_error, record.created // 60
        return self._minute_of_last_error != previous

    def request(self, method: str, scheme: str, route: str | None, headers: Mapping[str, str]) -> "RequestSpan":
        """Start the span of a request and make it the current span of this context.

        ``route`` is the template of the path, if a route matches; the header ``traceparent`` names the parent.
        """
        name, kind = (method, method) if method in HTTPMethod.__members__ else ("HTTP", "_OTHER")
        attributes = {HTTP_REQUEST_METHOD: kind, URL_SCHEME: scheme}
        if route is not None:
            attributes[HTTP_ROUTE] = route
            name = f"{name} {route}"
        # Not the current context, which can be that of an earlier request.
        parent = extract(headers, Context())
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes)
        attach(trace.set_span_in_context(span, parent))
        return RequestSpan(span)

    def storage_call(self, operation: str) -> AbstractContextManager[None]:
        return self._child_span(f"storage {operation}")

    def hashing(self, operation: str) -> AbstractContextManager[None]:
        return self._child_span(f"hashing {operation}")

    def notification(self, _operation: str) -> AbstractContextManager[None]:
        """A span in the trace of the request that led to the mail, if that was recorded."""
        context = request_context.get()
        if context is None or context.span_id is None:
            return nullcontext()
        carrier = {"traceparent": f"00-{context.trace_id}-{context.span_id}-01"}
        parent = TraceContextTextMapPropagator().extract(carrier, Context())
        return _ending(self._tracer.start_span("notification", parent, SpanKind.CONSUMER))

    def _child_span(self, name: str) -> AbstractContextManager[None]:
        # Background work, such as polling the outbox, has no span.
        recording = trace.get_current_span().is_recording()
        return _ending(self._tracer.start_span(name)) if recording else nullcontext()


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
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                self._span.set_attribute(ERROR_TYPE, str(status))
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _without_values(record: logging.LogRecord) -> bool:
    # The original message contains the header, which may have a key for the collector.
    record.msg = "OTEL_EXPORTER_OTLP_HEADERS or a similar variable has an entry that is not name=value"
    record.args = ()
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
