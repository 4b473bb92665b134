"""A collector that takes traces by OTLP over HTTP, and one that takes them and never answers."""

import gzip
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.server import DEADLINE


@dataclass(frozen=True)
class Received:
    """A span as it came."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, str | int]
    failed: bool
    began: int
    ended: int
    resource: dict[str, str | int]
    raw: bytes
    """All of it, for what must not be in it."""


def _attributes(pairs: "Iterator[KeyValue]") -> dict[str, str | int]:
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in pairs}


def _received(span: Span, resource: dict[str, str | int]) -> Received:
    return Received(
        name=span.name,
        kind=span.kind,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=_attributes(iter(span.attributes)),
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        began=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        resource=resource,
        raw=span.SerializeToString(),
    )


class Collector:
    """Keeps what it is sent; `collecting` makes one."""

    def __init__(self) -> None:
        self._spans: list[Received] = []
        self._news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if self.path == "/v1/traces":
                    collector._take(body)
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = {
            "USERSVC_TRACING": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._news:
            for of_resource in request.resource_spans:
                resource = _attributes(iter(of_resource.resource.attributes))
                for scope in of_resource.scope_spans:
                    self._spans += [_received(span, resource) for span in scope.spans]
            self._news.notify_all()

    @property
    def spans(self) -> list[Received]:
        """Everything that has come so far."""
        with self._news:
            return self._spans[:]

    def wait_for(self, enough: Callable[[list[Received]], bool]) -> list[Received]:
        """Wait until what has come is enough, and give it.

        Raises:
            AssertionError: it is not within the deadline.
        """
        with self._news:
            assert self._news.wait_for(lambda: enough(self._spans), DEADLINE), [span.name for span in self._spans]
            return self._spans[:]

    def wait_for_names(self, *names: str) -> dict[str, Received]:
        """Wait for a span of each name; of several that are named alike, the latest."""
        spans = self.wait_for(lambda spans: set(names) <= {span.name for span in spans})
        return {span.name: span for span in spans}

    def serve(self) -> None:
        self._server.serve_forever()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve)
    thread.start()
    try:
        yield collector
    finally:
        collector.close()
        thread.join()


@contextmanager
def hanging_collector() -> Iterator[tuple[dict[str, str], threading.Event]]:
    """A server that accepts connections and never answers: its settings, and whether it has been talked to."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as connections:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.enter_context(connection)
                asked.set()

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield (
                {
                    "USERSVC_TRACING": "otlp",
                    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{listener.getsockname()[1]}",
                    "OTEL_BSP_SCHEDULE_DELAY": "50",
                    # A small queue, that is full soon.
                    "OTEL_BSP_MAX_QUEUE_SIZE": "16",
                    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "16",
                },
                asked,
            )
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
