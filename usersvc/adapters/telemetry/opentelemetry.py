"""Traces by OpenTelemetry: of requests, and of what they do behind the ports (see ``observed.Instrument``).

Only what belongs to a request is traced, the mail that it leads to included; what the service does by itself is not.
Spans tell what was done, how long it took and how it ended, never what was given: no address, path, query or id. The
standard variables ``OTEL_...`` set up where they go. It is an extra, to be imported only when it is wanted.
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
"""Those told by name; clients may make up others."""

ABOUT_HEADERS = (
    "opentelemetry.baggage.propagation",
    "opentelemetry.trace.propagation.tracecontext",
    "opentelemetry.trace.span",
)
"""Loggers that warn of what clients have sent, in full, and of each part of it in a line of its own."""

ANSWERS = (EmailAlreadyRegistered, IdempotencyKeyUsed)
"""What is raised without anything having failed."""

SERVER_ERROR = 500
"""The first of the statuses that say that the server is to blame."""

FLUSH_TIMEOUT = 1.0
"""How long a stop waits for the spans that are still to be sent, in seconds."""

LINE_EVERY = 60.0
"""How often, in seconds, a collector that does not take spans makes a line in the log."""


class OpenTelemetryTracing:
    """The traces of a process; an asynchronous context manager that sends them by OTLP over HTTP.

    They are sent by a thread of its own, from a queue that has an end: a collector that is slow or gone costs spans,
    and keeps nobody waiting.
    """

    def __init__(self) -> None:
        """Set it up.

        Raises:
            ValueError: a variable ``OTEL_...`` has a value that is not accepted.
        """
        ours = Resource.create({SERVICE_NAME: "usersvc", SERVICE_VERSION: usersvc.__version__})
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        logging.getLogger("opentelemetry.util.re").addFilter(_without_values)
        for about_headers in ABOUT_HEADERS:
            logging.getLogger(about_headers).addFilter(_nothing)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
        self._tracer = self._provider.get_tracer("usersvc", usersvc.__version__)

    async def __aenter__(self) -> Self:
        """It sends already."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Send what is left, within ``FLUSH_TIMEOUT``."""
        # The library's own way waits for half a minute, and its time-outs are not those of a stop.
        sending = Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, FLUSH_TIMEOUT)
        if sending.is_alive():
            log.warning("the stop breaks off sending spans: the collector takes too long")

    def request(self, method: str, scheme: str, route: str | None, headers: Mapping[str, str]) -> "RequestSpan":
        """Begin the span of a request, to which what goes on in this context belongs from now on.

        Args:
            method: as it came.
            scheme: ``http`` or ``https``.
            route: the template of its path, if it has one.
            headers: of the request; they may name its parent.
        """
        known = method in METHODS
        verb = method if known else "HTTP"
        attributes = {HTTP_REQUEST_METHOD: method if known else "_OTHER", URL_SCHEME: scheme}
        if route is not None:
            attributes[HTTP_ROUTE] = route
        # Whatever this context has from before is another request's.
        parent = extract(headers, Context())
        span = self._tracer.start_span(
            verb if route is None else f"{verb} {route}", parent, SpanKind.SERVER, attributes
        )
        attach(trace.set_span_in_context(span, parent))
        return RequestSpan(span)

    @contextmanager
    def storage_call(self, operation: str) -> Iterator[None]:
        """See ``Instrument.storage_call``."""
        with self._part(f"storage {operation}"):
            yield

    @contextmanager
    def hashing(self, operation: str) -> Iterator[None]:
        """See ``Instrument.hashing``."""
        with self._part(f"hashing {operation}"):
            yield

    @contextmanager
    def notification(self, _operation: str) -> Iterator[None]:
        """See ``Instrument.notification``: a part of the request's trace, however much later, if that was recorded."""
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
        with _telling(self._tracer.start_span("notification", parent, SpanKind.CONSUMER)):
            yield

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        if not trace.get_current_span().is_recording():
            # Nobody's: the service looks into the outbox by itself, all the time.
            yield
            return
        with _telling(self._tracer.start_span(name)):
            yield


class RequestSpan:
    """The span of a request."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace_id = trace.format_trace_id(context.trace_id) if context.is_valid else None
        self.span_id = trace.format_span_id(context.span_id) if span.is_recording() else None

    def end(self, status: int | None) -> None:
        """End it; None: nobody was left to be answered."""
        if status is not None:
            self._span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
            if status >= SERVER_ERROR:
                self._span.set_attribute(ERROR_TYPE, str(status))
                self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Seldom(logging.Filter):
    """Lets lines of one kind pass once in ``LINE_EVERY``: a collector may be away for days."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line may pass."""
        last = self._passed.get(record.msg)
        if last is not None and record.created - last < LINE_EVERY:
            return False
        self._passed[record.msg] = record.created
        return True


def _nothing(_: logging.LogRecord) -> bool:
    """Let no line pass."""
    return False


def _without_values(record: logging.LogRecord) -> bool:
    """Take what was set out of a complaint about it: a header for the collector may hold a key of its owner's."""
    record.msg, record.args = "OTEL_EXPORTER_OTLP_HEADERS or the like has an entry that is not name=value", ()
    return True


@contextmanager
def _telling(span: Span) -> Iterator[None]:
    """Within it the span is the current one; how it ends is told by kind and not by text, which may hold anything."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            span.set_attribute(ERROR_TYPE, type(error).__name__)
            if not isinstance(error, ANSWERS):
                span.set_status(StatusCode.ERROR)
            raise
