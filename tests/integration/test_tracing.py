"""The spans of the whole service in this process, as a collector receives them; `tests/soak` runs it as a process."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from aiohttp.test_utils import TestServer

from tests.collector import Collector, collecting
from tests.e2e.api import PASSWORD, person, register
from tests.e2e.server import DEADLINE, break_reads, free_port
from usersvc.bootstrap import create_service_app
from usersvc.config import Settings

Connect = Callable[..., httpx.Client]


@contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    """Run the service in a thread of this process, and connect a client to it."""
    loop = asyncio.new_event_loop()
    server = TestServer(create_service_app(settings))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start_server(), loop).result(DEADLINE)
        with httpx.Client(base_url=str(server.make_url("/")), trust_env=False, timeout=DEADLINE) as client:
            yield client
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(DEADLINE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def connect(collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Starts the service with these settings, and with the collector."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:

        def connect(**settings: str) -> httpx.Client:
            for name, value in (collector.settings | settings).items():
                monkeypatch.setenv(name, value)
            running: AbstractContextManager[httpx.Client] = serving(Settings.from_environment())
            return stack.enter_context(running)

        monkeypatch.setenv("USERSVC_BCRYPT_COST", "4")
        monkeypatch.setenv("USERSVC_REGISTER_RATE", "")
        yield connect


def test_spans_hold_no_data_of_people(connect: Connect, collector: Collector) -> None:
    client = connect()
    user = register(client, email="alice.secret@example.com")
    client.get("/users?email=alice.secret@example.com")
    client.get(f"/users/{user['id']}")
    client.get("/nothing/alice.secret@example.com?alice.secret")
    client.request("PROPFIND", "/users")
    client.post("/register", json=person(email="alice.secret@example.com"))
    spans = collector.wait_for(
        lambda spans: (
            {"GET", "HTTP", "notification"} <= {span.name for span in spans}
            and sum(span.name == "storage add" for span in spans) == 2
            and sum(span.name == "POST /register" for span in spans) == 2
        )
    )

    for span in spans:
        for secret in (b"alice", b"secret", user["id"].encode(), UUID(user["id"]).bytes, PASSWORD.encode(), b"127.0.0"):
            assert secret not in span.raw.lower(), span
    names = {span.name for span in spans}
    assert {"GET /users", "GET /users/{user_id}", "GET", "HTTP", "storage page", "storage find"} <= names
    # A taken address is a response, not a failure.
    assert not [span for span in spans if span.failed]
    assert [span.attributes["error.type"] for span in spans if "error.type" in span.attributes] == [
        "EmailAlreadyRegistered"
    ]


def test_failures_are_reported_by_kind(connect: Connect, collector: Collector, tmp_path: Path) -> None:
    client = connect(USERSVC_SMTP_URL=f"smtp://127.0.0.1:{free_port()}", USERSVC_MAIL_FROM="usersvc@example.com")
    register(client)
    notification = collector.wait_for_names("notification")["notification"]
    break_reads(tmp_path / "usersvc.db")
    assert client.get("/users").status_code == 503
    spans = collector.wait_for_names("storage page", "GET /users")

    assert notification.failed
    assert notification.attributes["error.type"] == "SMTPConnectError"
    assert spans["storage page"].failed
    assert spans["storage page"].attributes["error.type"] == "StorageUnavailable"
    assert spans["GET /users"].failed
    assert spans["GET /users"].attributes["error.type"] == "503"


def test_a_streamed_list_is_one_span_that_contains_every_read(connect: Connect, collector: Collector) -> None:
    client = connect()
    register(client)
    client.get("/users", headers={"Accept": "application/x-ndjson"})
    spans = collector.wait_for_names("storage page", "GET /users")

    request, batch = spans["GET /users"], spans["storage page"]
    assert (batch.trace_id, batch.parent_id) == (request.trace_id, request.span_id)
    assert batch.ended <= request.ended
