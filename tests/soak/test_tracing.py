"""The traces of a real service, as a collector receives them."""

import json
import socket
import sys
from pathlib import Path

import pytest

from tests.collector import Received, collecting, hanging_collector
from tests.e2e.api import person, register
from tests.e2e.server import DEADLINE, free_port, run_to_end, running

SERVER, CONSUMER, INTERNAL = 2, 5, 1
"""Kinds of spans, as OTLP numbers them."""

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"

A_REGISTRATION = ("POST /register", "hashing hash", "storage add", "notification")


def test_a_registration_is_one_trace_from_the_caller_to_the_mail(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        running(tmp_path, collector.settings | {"USERSVC_LOG_FORMAT": "json"}) as service,
        service.client() as client,
    ):
        sent = person()
        headers = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "X-Request-ID": "the-one"}
        client.post("/register", json=sent, headers=headers)
        spans = collector.wait_for_names(*A_REGISTRATION)
        service.wait_for_output("the-one", count=2)
        lines = [json.loads(line) for line in service.output.splitlines() if "the-one" in line]

    request, hashing, storage, notification = (spans[name] for name in A_REGISTRATION)
    assert (request.trace_id, request.parent_id, request.kind) == (TRACE, CALLER, SERVER)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/register",
        "http.response.status_code": 201,
        "url.scheme": "http",
    }
    for part in (hashing, storage, notification):
        assert (part.trace_id, part.parent_id) == (TRACE, request.span_id)
        assert not part.failed
    assert (hashing.kind, storage.kind, notification.kind) == (INTERNAL, INTERNAL, CONSUMER)
    assert request.began <= hashing.began < hashing.ended <= storage.began < storage.ended <= request.ended
    assert request.resource["service.name"] == "usersvc"
    assert [line["trace_id"] for line in lines] == [TRACE] * 2


def test_the_log_names_the_trace_that_the_service_begins(tmp_path: Path) -> None:
    settings = {"USERSVC_LOG_FORMAT": "json", "OTEL_SERVICE_NAME": "people"}
    with (
        collecting() as collector,
        running(tmp_path, collector.settings | settings) as service,
        service.client() as client,
    ):
        client.post("/register", json=person(), headers={"X-Request-ID": "the-one", "traceparent": "nonsense"})
        spans = collector.wait_for_names(*A_REGISTRATION)
        service.wait_for_output("the-one", count=2)
        lines = [json.loads(line) for line in service.output.splitlines() if "the-one" in line]

    request = spans["POST /register"]
    assert request.parent_id == ""
    assert request.resource["service.name"] == "people"
    assert [line["trace_id"] for line in lines] == [request.trace_id] * 2
    assert spans["notification"].trace_id == request.trace_id


def test_a_client_that_goes_away_leaves_a_span_without_an_answer(tmp_path: Path) -> None:
    with collecting() as collector, running(tmp_path, collector.settings) as service:
        with socket.create_connection(service.address) as connection:
            connection.sendall(
                b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n"
            )
            # It reads the body from now on.
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        span = collector.wait_for_names("POST /register")["POST /register"]
    assert "http.response.status_code" not in span.attributes
    assert not span.failed


def test_what_the_caller_does_not_record_is_not_recorded(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        running(tmp_path, collector.settings) as service,
        service.client() as client,
    ):
        client.post("/register", json=person(), headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
        service.wait_for_output("sent a welcome mail")
        client.get("/", headers={"traceparent": f"00-{'1' * 32}-{CALLER}-01"})
        collector.wait_for_names("GET /")
        assert TRACE in service.output
    assert TRACE not in {span.trace_id for span in collector.spans}


def test_what_the_service_does_by_itself_is_not_traced(tmp_path: Path) -> None:
    with collecting() as collector, running(tmp_path, collector.settings) as service, service.client() as client:
        register(client)
        collector.wait_for_names("notification")
    # The end has sent everything, though the outbox was looked into several times.
    assert {span.name for span in collector.spans} == {*A_REGISTRATION, "GET /livez"}


def test_a_stop_sends_what_is_left_and_every_worker_sends(tmp_path: Path) -> None:
    def workers(spans: list[Received]) -> set[str | int]:
        return {span.resource["service.instance.id"] for span in spans}

    # So long, that nothing would be sent before the end.
    settings = {"USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port()), "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with collecting() as collector:
        with running(tmp_path, collector.settings | settings) as service:
            service.wait_for_output("Application startup complete", count=2)
            for _ in range(40):
                # A connection each, so that the system spreads them.
                with service.client() as client:
                    client.get("/")
            assert collector.spans == []
        assert len([span for span in collector.spans if span.name == "GET /"]) == 40
        assert len(workers(collector.spans)) == 2


def test_a_collector_that_hangs_keeps_neither_requests_nor_the_stop_waiting(tmp_path: Path) -> None:
    with (
        hanging_collector() as (settings, asked),
        running(tmp_path, settings) as service,
        service.client() as client,
    ):
        # More than the queue takes.
        for _ in range(50):
            assert client.get("/").status_code == 200
        assert asked.wait(DEADLINE)
        register(client)
        service.wait_for_output("sent a welcome mail")
        # Within what container engines wait before they kill: the collector never lets go.
        assert service.stop() == 0
        assert "discarding the last spans at shutdown" in service.output
    assert "Traceback" not in service.output


def test_without_a_collector_everything_works(tmp_path: Path) -> None:
    settings = {
        "USERSVC_TRACING": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    with running(tmp_path, settings) as service, service.client() as client:
        register(client)
        service.wait_for_output("encountered while exporting spans batch")
        register(client)
        assert service.stop() == 0
    assert "Traceback" not in service.output


IN_PROCESS = """
import asyncio, sys
from usersvc.bootstrap import create_service_app
from usersvc.config import Settings

async def use(app):
    runner = __import__("aiohttp.web").web.AppRunner(app)
    await runner.setup()
    await runner.cleanup()

asyncio.run(use(create_service_app(Settings.from_environment())))
print(sorted(name for name in sys.modules if name.partition(".")[0] in {"opentelemetry", "google", "requests"}))
"""


def test_a_header_that_is_not_understood_is_told_without_its_value(tmp_path: Path) -> None:
    with (
        collecting() as collector,
        running(tmp_path, collector.settings | {"OTEL_EXPORTER_OTLP_HEADERS": "hunter2hunter2"}) as service,
    ):
        service.wait_for_output("OTEL_EXPORTER_OTLP_HEADERS or a similar variable has an entry")
    assert "hunter2" not in service.output


def test_off_means_that_nothing_of_it_is_even_imported(tmp_path: Path) -> None:
    program = [sys.executable, "-c", IN_PROCESS]
    off = run_to_end(tmp_path, {"USERSVC_DATABASE_URL": "memory://"}, program)
    assert (off.returncode, off.stdout) == (0, "[]\n")
    on = run_to_end(tmp_path, {"USERSVC_DATABASE_URL": "memory://", "USERSVC_TRACING": "otlp"}, program)
    assert (on.returncode, "'opentelemetry'" in on.stdout) == (0, True)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what a process has loaded")
def test_the_service_that_runs_has_not_loaded_it(tmp_path: Path) -> None:
    def loaded(pid: int) -> str:
        return Path(f"/proc/{pid}/maps").read_text("utf-8")

    with running(tmp_path) as service:
        assert "google/_upb" not in loaded(service.pid)
    with collecting() as collector, running(tmp_path, collector.settings) as service:
        # The library's part in C.
        assert "google/_upb" in loaded(service.pid)


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000")]
)
def test_a_variable_that_the_library_does_not_accept_stops_the_start(tmp_path: Path, name: str, value: str) -> None:
    ended = run_to_end(tmp_path, {"USERSVC_TRACING": "otlp", name: value})
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert line.startswith("usersvc: USERSVC_TRACING accepts otlp ")
