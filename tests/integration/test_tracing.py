"""The spans of the service in this process, as a collector receives them; `tests/soak` runs it as a process."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from tests.collector import Collector, collecting
from tests.e2e.api import PASSWORD, person
from tests.e2e.server import break_reads, free_port
from usersvc.adapters.telemetry.opentelemetry import OpenTelemetryTracing
from usersvc.bootstrap import create_service_app
from usersvc.config import Settings

Client = TestClient[web.Request, web.Application]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
async def client(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Client]:
    """A client of the service, whose spans the collector receives; the parameter has further settings."""
    monkeypatch.chdir(tmp_path)
    settings = {"USERSVC_BCRYPT_COST": "4", "USERSVC_REGISTER_RATE": ""} | getattr(request, "param", {})
    for name, value in (collector.settings | settings).items():
        monkeypatch.setenv(name, value)
    async with TestClient(TestServer(create_service_app(Settings.from_environment()))) as client:
        yield client


async def register(client: Client, **changes: object) -> str:
    """Register a user, and return its id."""
    response = await client.post("/register", json=person(**changes))
    assert response.status == 201
    user_id: str = (await response.json())["data"]["id"]
    return user_id


async def test_spans_contain_no_personal_data(client: Client, collector: Collector) -> None:
    user_id = await register(client, email="alice.secret@example.com")
    await client.get("/users?email=alice.secret@example.com")
    await client.get(f"/users/{user_id}")
    await client.get("/nothing/alice.secret@example.com?alice.secret")
    await client.request("PROPFIND", "/users")
    await client.post("/register", json=person(email="alice.secret@example.com"))
    spans = await asyncio.to_thread(
        collector.wait_for,
        lambda spans: (
            {"GET", "HTTP", "notification"} <= {span.name for span in spans}
            and sum(span.name == "storage add" for span in spans) == 2
            and sum(span.name == "POST /register" for span in spans) == 2
        ),
    )

    for span in spans:
        for secret in (b"alice", b"secret", user_id.encode(), UUID(user_id).bytes, PASSWORD.encode(), b"127.0.0"):
            assert secret not in span.raw.lower(), span
    names = {span.name for span in spans}
    assert {"GET /users", "GET /users/{user_id}", "GET", "HTTP", "storage page", "storage find"} <= names
    # A taken address is a response, not a failure.
    assert not [span for span in spans if span.failed]
    assert [span.attributes["error.type"] for span in spans if "error.type" in span.attributes] == [
        "EmailAlreadyRegistered"
    ]


@pytest.mark.parametrize(
    "client",
    [{"USERSVC_SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "USERSVC_MAIL_FROM": "usersvc@example.com"}],
    indirect=True,
)
async def test_failures_are_reported_by_type(client: Client, collector: Collector, tmp_path: Path) -> None:
    await register(client)
    notification = (await asyncio.to_thread(collector.wait_for_names, "notification"))["notification"]
    break_reads(tmp_path / "usersvc.db")
    assert (await client.get("/users")).status == 503
    spans = await asyncio.to_thread(collector.wait_for_names, "storage page", "GET /users")

    failed = [notification, spans["storage page"], spans["GET /users"]]
    assert all(span.failed for span in failed)
    types = [span.attributes["error.type"] for span in failed]
    assert types == ["SMTPConnectError", "StorageUnavailable", "503"]


async def test_a_streamed_list_is_one_span_that_contains_every_read(client: Client, collector: Collector) -> None:
    await register(client)
    await (await client.get("/users", headers={"Accept": "application/x-ndjson"})).read()
    spans = await asyncio.to_thread(collector.wait_for_names, "storage page", "GET /users")

    request, batch = spans["GET /users"], spans["storage page"]
    assert (batch.trace_id, batch.parent_id) == (request.trace_id, request.span_id)
    assert batch.ended <= request.ended


def test_a_failing_collector_is_logged_once_a_minute(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for name, value in collector.settings.items():
            patched.setenv(name, value)
        OpenTelemetryTracing()
    exporter_log = logging.getLogger(OTLPSpanExporter.__module__)
    for seconds in (60, 61, 119, 120, 179, 3600):
        exporter_log.handle(logging.makeLogRecord({"created": float(seconds), "levelno": logging.ERROR}))
    assert [record.created for record in caplog.records] == [60, 120, 3600]
