"""The worked example of docs/extend.md beyond the contract suite: its own failures, and the service built with it."""

# ruff: noqa: ASYNC240  # nothing else runs in the event loop of these tests

import base64
import hmac
import json
import re
import resource
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from docs.examples.journal_users import JournalUsers
from docs.examples.webhook_notifier import WebhookNotifier
from tests.e2e.api import register
from tests.e2e.server import DEADLINE, free_port, running
from tests.fakes import NOW, person
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.read_models import Order
from usersvc.domain.events import UserRegistered

EVENT = UserRegistered(UUID("01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"), "alice@example.com", NOW)
KEY = IdempotencyKey.named("0b9f6f1c")


# --- the notifier ---


@asynccontextmanager
async def webhook(*statuses: int) -> AsyncIterator[tuple[list[tuple[Mapping[str, str], bytes]], WebhookNotifier]]:
    """A server that responds with these statuses, the messages that it receives, and its notifier."""
    messages: list[tuple[Mapping[str, str], bytes]] = []

    async def receive(request: web.Request) -> web.Response:
        messages.append((request.headers.copy(), await request.read()))
        return web.Response(status=statuses[len(messages) - 1], headers={"Location": "/elsewhere"})

    app = web.Application()
    app.add_routes([web.post("/hook", receive), web.post("/elsewhere", receive)])
    async with TestServer(app) as server, WebhookNotifier(str(server.make_url("/hook")), secret=b"shared") as notifier:
        yield messages, notifier


async def test_a_message_has_the_event_is_signed_and_keeps_its_id_when_repeated() -> None:
    async with webhook(503, 204) as (messages, notifier):
        with pytest.raises(ConnectionError, match="503"):
            await notifier.welcome(EVENT)
        await notifier.welcome(EVENT)
    [(first, _), (headers, body)] = messages
    assert first["webhook-id"] == headers["webhook-id"]
    assert json.loads(body) == {
        "type": "user.registered",
        "timestamp": "2026-01-31T09:30:00.000123Z",
        "data": {"id": str(EVENT.user_id), "email": "alice@example.com"},
    }
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(b"shared", signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, Undeliverable) for status in (400, 410, 413, 422)),
        *((status, ConnectionError) for status in (302, 404, 500)),
    ],
)
async def test_only_a_rejected_message_is_final_and_no_redirect_is_followed(
    status: int, error: type[Exception]
) -> None:
    async with webhook(status) as (messages, notifier):
        with pytest.raises(error, match=str(status)) as refused:
            await notifier.welcome(EVENT)
    assert not re.search(r"alice|127\.0\.0\.1", str(refused.value))
    assert len(messages) == 1


# --- the store ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.jsonl"


async def names(users: JournalUsers) -> list[str]:
    page = await users.page(limit=100, order=Order.ASC, after=None, mailbox=None)
    return [user["email"].partition("@")[0] for user in page.users]


async def test_everything_is_restored(path: Path) -> None:
    async def read(users: JournalUsers) -> list[object]:
        return [
            await users.outbox.entries(),
            await users.users(after=None, limit=10),
            await users.registered_with(KEY, at=NOW),
        ]

    async with JournalUsers(path) as users:
        await users.add(person(), key=KEY)
        [entry] = await users.outbox.lease(now=NOW, until=NOW + timedelta(minutes=1), limit=1)
        await users.outbox.reschedule(entry, due_at=NOW + timedelta(hours=1), reason="busy")
        before = await read(users)
    async with JournalUsers(path) as users:
        assert await read(users) == before
        assert None not in before


async def test_positions_and_ids_are_not_reused_after_a_restart(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(alice := person())
        [before] = await users.users(after=None, limit=10)
        [first] = await users.outbox.entries()
        await users.remove(alice.id)
    async with JournalUsers(path) as users:
        await users.add(person("bob@example.com"))
        [after] = await users.users(after=None, limit=10)
        [second] = await users.outbox.entries()
    assert (after.position, second.id) > (before.position, first.id)


@pytest.mark.parametrize("cut", [1, 100])
async def test_a_truncated_line_is_ignored(path: Path, cut: int) -> None:
    async with JournalUsers(path) as users:
        await users.add(person())
        await users.add(person("bob@example.com"))
    path.write_bytes(path.read_bytes()[:-cut])
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice"]
        assert [entry.event.email for entry in await users.outbox.entries()] == ["alice@example.com"]
        await users.add(person("carol@example.com"))
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice", "carol"]


async def test_a_damaged_file_is_refused_and_not_changed(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(person())
        await users.add(person("bob@example.com"))
    damaged = path.read_bytes().replace(b'"users"', b'"use', 1)
    path.write_bytes(damaged)
    with pytest.raises(StorageUnavailable, match="damaged"):
        await JournalUsers(path).__aenter__()
    assert path.read_bytes() == damaged


async def test_the_file_is_for_one_process_and_its_owner(path: Path) -> None:
    async with JournalUsers(path) as users:
        with pytest.raises(StorageUnavailable, match="another process"):
            await JournalUsers(path).__aenter__()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageUnavailable, match="closed"):
        await users.add(person())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("capacity", [0, 50])
async def test_a_full_disk_stores_nothing_and_loses_nothing(path: Path, capacity: int) -> None:
    async with JournalUsers(path) as users:
        await users.add(person())
        before = path.read_bytes()
        with files_of_at_most(len(before) + capacity):
            with pytest.raises(StorageUnavailable):
                await users.add(person("bob@example.com"))
            assert await names(users) == ["alice"]
        assert path.read_bytes() == before
        await users.check()
        await users.add(person("bob@example.com"))
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice", "bob"]


async def test_no_data_of_a_removed_user_is_left_in_the_file(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(alice := person(), key=KEY)
        await users.add(person("bob@example.com"))
        assert b"alice@" in path.read_bytes()
        await users.remove(alice.id)
        assert b"alice@" not in path.read_bytes()
        assert str(alice.id).encode() not in path.read_bytes()
        assert KEY.digest.encode() not in path.read_bytes()


# --- the service with both ---


@contextmanager
def webhook_in_thread(port: int, messages: "Queue[dict[str, Any]]") -> Iterator[None]:
    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", port), Hook) as server:
        Thread(target=server.serve_forever).start()
        yield
        server.shutdown()


def test_the_service_delivers_after_a_kill(tmp_path: Path) -> None:
    hook, messages = free_port(), Queue[dict[str, Any]]()
    settings = {
        "WEBHOOK_URL": f"http://127.0.0.1:{hook}/",
        "WEBHOOK_SECRET": "shared",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    # Half a second instead of five before the second attempt.
    program = (
        "import datetime, uvicorn, usersvc.application.mail_delivery as delivery;"
        "delivery.FIRST_DELAY = datetime.timedelta(seconds=0.5); uvicorn.main()"
    )
    command = [sys.executable, "-c", program, "--factory", "docs.examples.service:create_asgi_app", "--port", "0"]
    with running(tmp_path, settings, command) as first, first.client() as client:
        registered = register(client, email="alice@example.com")
        first.wait_for_output(r"attempt 1 to welcome")
        first.kill()

    with webhook_in_thread(hook, messages), running(tmp_path, settings, command) as second, second.client() as client:
        assert client.get("/users").json()["data"] == [registered]
        message = messages.get(timeout=DEADLINE)
    assert message["data"] == {"id": registered["id"], "email": "alice@example.com"}
