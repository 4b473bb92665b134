"""A collector that receives traces by OTLP over HTTP, and one that never responds."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.server import DEADLINE

Attributes = dict[str, str | int]


def settings_for(port: int) -> dict[str, str]:
    """Settings of a service that sends its spans to this port without delay."""
    return {
        "USERSVC_TRACING": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in pairs}


class Received:
    """A span as it was received."""

    def __init__(self, span: Span, resource: Attributes) -> None:
        self.name = span.name
        self.kind = span.kind
        self.trace_id = span.trace_id.hex()
        self.span_id = span.span_id.hex()
        self.parent_id = span.parent_span_id.hex()
        self.attributes = _attributes(span.attributes)
        self.failed = span.status.code == span.status.STATUS_CODE_ERROR
        self.began, self.ended = span.start_time_unix_nano, span.end_time_unix_nano
        self.resource = resource
        self.raw = span.SerializeToString()


class Collector:
    """The spans received so far; ``settings`` make a service send its spans."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self._spans: list[Received] = []
        self._changed = threading.Condition()

    def receive(self, body: bytes) -> None:
        with self._changed:
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _attributes(group.resource.attributes)
                self._spans += [Received(span, resource) for scope in group.scope_spans for span in scope.spans]
            self._changed.notify_all()

    @property
    def spans(self) -> list[Received]:
        with self._changed:
            return self._spans[:]

    def wait_for(self, enough: Callable[[list[Received]], bool]) -> list[Received]:
        """Wait until the received spans are enough, and return them.

        Raises:
            AssertionError: they are not within the deadline.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self._spans), DEADLINE), [span.name for span in self._spans]
            return self._spans[:]

    def wait_for_names(self, *names: str) -> dict[str, Received]:
        """Wait for a span of each name; of several with one name, return the latest."""
        spans = self.wait_for(lambda spans: set(names) <= {span.name for span in spans})
        return {span.name: span for span in spans}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            collector.receive(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.settings = settings_for(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def hanging_collector() -> Iterator[tuple[dict[str, str], socket.socket]]:
    """A server whose system accepts connections to it, but which never responds: its settings and its socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        # A small queue, which is full soon.
        limits = {"OTEL_BSP_MAX_QUEUE_SIZE": "16", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16"}
        yield settings_for(listener.getsockname()[1]) | limits, listener
