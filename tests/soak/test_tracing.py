"""The traces of the real service, as a collector receives them."""

import json
import socket
from pathlib import Path

import pytest

from tests.collector import collecting, hanging_collector, settings_for
from tests.e2e.api import person, register
from tests.e2e.server import free_port, run_to_end, running

SERVER, CONSUMER, INTERNAL = 2, 5, 1
"""Kinds of spans, as numbered in OTLP."""

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

REGISTRATION = ("POST /register", "hashing hash", "storage add", "notification")


@pytest.mark.parametrize(
    ("traceparent", "caller", "name"), [(f"00-{TRACE}-{CALLER}-01", CALLER, "usersvc"), ("nonsense", "", "people")]
)
def test_a_registration_is_one_trace_from_the_caller_to_the_mail(
    traceparent: str, caller: str, name: str, tmp_path: Path
) -> None:
    settings = {"USERSVC_LOG_FORMAT": "json"} | ({"OTEL_SERVICE_NAME": name} if name != "usersvc" else {})
    headers = {"traceparent": traceparent, "tracestate": "vendor=1", "X-Request-ID": "the-one"}
    with (
        collecting() as collector,
        running(tmp_path, collector.settings | settings) as service,
        service.client() as client,
    ):
        client.post("/register", json=person(), headers=headers)
        spans = collector.wait_for_names(*REGISTRATION)
        service.wait_for_output("the-one", count=2)
        lines = [json.loads(line) for line in service.output.splitlines() if "the-one" in line]

    # Although the outbox was polled several times, and the stop has exported every span.
    assert {span.name for span in collector.spans} == {*REGISTRATION, "GET /livez"}
    request, hashing, storage, notification = (spans[name] for name in REGISTRATION)
    assert (request.parent_id, request.kind) == (caller, SERVER)
    assert (request.trace_id == TRACE) == (caller == CALLER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/register",
        "http.response.status_code": 201,
        "url.scheme": "http",
    }
    for part in (hashing, storage, notification):
        assert (part.trace_id, part.parent_id, part.failed) == (request.trace_id, request.span_id, False)
    assert (hashing.kind, storage.kind, notification.kind) == (INTERNAL, INTERNAL, CONSUMER)
    assert request.began <= hashing.began < hashing.ended <= storage.began < storage.ended <= request.ended
    assert request.resource["service.name"] == name
    assert [line["trace_id"] for line in lines] == [request.trace_id] * 2


def test_the_span_of_a_client_that_disconnects_has_no_status(tmp_path: Path) -> None:
    with collecting() as collector, running(tmp_path, collector.settings) as service:
        with socket.create_connection(service.address) as connection:
            connection.sendall(
                b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
            )
            # From now on it reads the body.
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        span = collector.wait_for_names("POST /register")["POST /register"]
    assert "http.response.status_code" not in span.attributes
    assert not span.failed


def test_a_trace_that_the_caller_does_not_record_is_not_recorded(tmp_path: Path) -> None:
    with collecting() as collector, running(tmp_path, collector.settings) as service, service.client() as client:
        client.post("/register", json=person(), headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        service.wait_for_output("sent a welcome mail")
        client.get("/", headers={"traceparent": f"00-{'1' * 32}-{CALLER}-01"})
        collector.wait_for_names("GET /")
        assert TRACE in service.output
    assert TRACE not in {span.trace_id for span in collector.spans}


def test_a_stop_exports_the_remaining_spans_of_every_worker(tmp_path: Path) -> None:
    # So long that nothing is exported before the stop.
    settings = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port()), "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with collecting() as collector:
        with running(tmp_path, collector.settings | settings) as service:
            service.wait_for_output("Application startup complete", count=2)
            for _ in range(40):
                # A connection for each, so that the system distributes them.
                with service.client() as client:
                    client.get("/")
            assert collector.spans == []
        assert len([span for span in collector.spans if span.name == "GET /"]) == 40
        assert len({span.resource["service.instance.id"] for span in collector.spans}) == 2


def test_a_collector_that_hangs_delays_neither_requests_nor_the_stop(tmp_path: Path) -> None:
    with (
        hanging_collector() as (settings, listener),
        running(tmp_path, settings) as service,
        service.client() as client,
    ):
        # More than the queue accepts.
        for _ in range(50):
            assert client.get("/").status_code == 200
        with listener.accept()[0]:
            register(client)
            service.wait_for_output("sent a welcome mail")
            assert service.stop() == 0
        assert "discarding the last spans at shutdown" in service.output
    assert "Traceback" not in service.output


def test_without_a_collector_everything_works(tmp_path: Path) -> None:
    # A header that is not understood is logged without its value.
    settings = settings_for(free_port()) | {"OTEL_EXPORTER_OTLP_HEADERS": "hunter2hunter2"}
    with running(tmp_path, settings) as service, service.client() as client:
        register(client)
        service.wait_for_output("Failed to export spans batch")
        register(client)
        assert service.stop() == 0
    assert "OTEL_EXPORTER_OTLP_HEADERS or a similar variable has an entry" in service.output
    assert "hunter2" not in service.output
    assert "Traceback" not in service.output


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")]
)
def test_a_variable_that_the_library_rejects_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    ended = run_to_end(tmp_path, {"USERSVC_TRACING": "otlp", name: value})
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("usersvc: USERSVC_TRACING accepts otlp ")
