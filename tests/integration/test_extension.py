"""The worked example of docs/extend.md, beyond the contract suite: its own faults, and the service made of it."""

import base64
import hmac
import json
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
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
from tests.e2e.server import DEADLINE, Service, free_port
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.read_models import Order, view_of
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash, User

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
EVENT = UserRegistered(UUID("01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"), "alice@example.com", NOW)
KEY = IdempotencyKey.named("0b9f6f1c")


# --- the notifier ---


class Hook:
    """Somebody who listens; gives these answers one after the other, and keeps what came."""

    def __init__(self, *statuses: int) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self._statuses = iter(statuses)
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.messages.append(({name.lower(): value for name, value in request.headers.items()}, await request.read()))
        return web.Response(status=next(self._statuses), headers={"Location": "/elsewhere"})


@asynccontextmanager
async def listening(*statuses: int) -> AsyncIterator[tuple[Hook, WebhookNotifier]]:
    hook = Hook(*statuses)
    app = web.Application()
    app.add_routes([web.post("/hook", hook.answer), web.post("/elsewhere", hook.answer)])
    async with TestServer(app) as server, WebhookNotifier(str(server.make_url("/hook")), secret=b"shared") as notifier:
        yield hook, notifier


async def test_a_message_says_what_happened_and_is_signed() -> None:
    async with listening(204) as (hook, notifier):
        await notifier.welcome(EVENT)
    [(headers, body)] = hook.messages
    assert json.loads(body) == {
        "type": "user.registered",
        "timestamp": "2026-01-31T09:30:00.000000Z",
        "data": {"id": str(EVENT.user_id), "email": "alice@example.com"},
    }
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(b"shared", signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


async def test_a_repetition_can_be_told() -> None:
    async with listening(503, 200) as (hook, notifier):
        with pytest.raises(ConnectionError, match="503"):
            await notifier.welcome(EVENT)
        await notifier.welcome(EVENT)
    first, second = (headers["webhook-id"] for headers, _ in hook.messages)
    assert first == second


@pytest.mark.parametrize("status", [400, 410, 413, 422])
async def test_what_is_wrong_with_the_message_is_final(status: int) -> None:
    async with listening(status) as (_, notifier):
        with pytest.raises(Undeliverable, match=str(status)) as refused:
            await notifier.welcome(EVENT)
    assert "alice" not in str(refused.value)


@pytest.mark.parametrize("status", [302, 401, 404, 429, 500])
async def test_what_may_be_mended_is_not_final_and_nothing_is_followed(status: int) -> None:
    async with listening(status) as (hook, notifier):
        with pytest.raises(ConnectionError, match=str(status)) as refused:
            await notifier.welcome(EVENT)
    assert "127.0.0.1" not in str(refused.value)
    assert len(hook.messages) == 1


async def test_nobody_listening_is_not_final() -> None:
    async with WebhookNotifier(f"http://127.0.0.1:{free_port()}/hook", secret=b"shared") as notifier:
        with pytest.raises(OSError, match="Cannot connect"):
            await notifier.welcome(EVENT)


# --- the store ---


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "users.jsonl"


def content(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def person(email: str, *, at: datetime = NOW) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=at)


async def names(users: JournalUsers) -> list[str]:
    page = await users.page(limit=100, order=Order.ASC, after=None, mailbox=None)
    return [user["email"].partition("@")[0] for user in page.users]


async def test_everything_is_there_again(path: Path) -> None:
    alice, bob = person("alice@example.com"), person("bob@example.com")
    async with JournalUsers(path) as users:
        await users.add(alice, key=KEY)
        await users.add(bob)
        [entry] = await users.outbox.lease(now=NOW, until=NOW + timedelta(minutes=1), limit=1)
        await users.outbox.reschedule(entry, due_at=NOW + timedelta(hours=1), reason="busy")
        before = await users.outbox.entries(), await users.users(after=None, limit=10)
    async with JournalUsers(path) as users:
        assert (await users.outbox.entries(), await users.users(after=None, limit=10)) == before
        assert await users.find(bob.id) == view_of(bob)
        earlier = await users.registered_with(KEY, at=NOW)
        assert earlier is not None
        assert earlier.user == view_of(alice)


async def test_no_number_is_given_out_again_after_a_restart(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(alice := person("alice@example.com"))
        [before] = await users.users(after=None, limit=10)
        [first] = await users.outbox.entries()
        await users.remove(alice.id)
    async with JournalUsers(path) as users:
        await users.add(person("bob@example.com"))
        [after] = await users.users(after=None, limit=10)
        [second] = await users.outbox.entries()
    assert (after.position, second.id) > (before.position, first.id)


@pytest.mark.parametrize("cut", [1, 10, 100])
async def test_a_line_that_was_cut_off_is_as_if_it_had_never_been(path: Path, cut: int) -> None:
    async with JournalUsers(path) as users:
        await users.add(person("alice@example.com"))
        await users.add(person("bob@example.com"))
    put(path, content(path)[:-cut])
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice"]
        assert [entry.event.email for entry in await users.outbox.entries()] == ["alice@example.com"]
        await users.add(person("carol@example.com"))
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice", "carol"]


async def test_a_damaged_file_is_refused_and_left_alone(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(person("alice@example.com"))
        await users.add(person("bob@example.com"))
    damaged = content(path).replace(b'"users"', b'"use', 1)
    put(path, damaged)
    with pytest.raises(StorageUnavailable, match="damaged"):
        await JournalUsers(path).__aenter__()
    assert content(path) == damaged


async def test_a_second_process_is_refused(path: Path) -> None:
    async with JournalUsers(path):
        with pytest.raises(StorageUnavailable, match="another process"):
            await JournalUsers(path).__aenter__()


async def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(person("alice@example.com"))
    assert mode(path) == 0o600


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 50])
async def test_no_room_takes_nothing_and_loses_nothing(path: Path, room: int) -> None:
    async with JournalUsers(path) as users:
        await users.add(person("alice@example.com"))
        before = content(path)
        with files_of_at_most(len(before) + room):
            with pytest.raises(StorageUnavailable):
                await users.add(person("bob@example.com"))
            assert await names(users) == ["alice"]
        assert content(path) == before
        await users.check()
        await users.add(person("bob@example.com"))
    async with JournalUsers(path) as users:
        assert await names(users) == ["alice", "bob"]


async def test_nothing_of_who_was_removed_is_left_in_the_file(path: Path) -> None:
    async with JournalUsers(path) as users:
        await users.add(alice := person("alice@example.com"), key=KEY)
        await users.add(person("bob@example.com"))
        assert b"alice@" in content(path)
        await users.remove(alice.id)
        assert b"alice@" not in content(path)
        assert str(alice.id).encode() not in content(path)
        assert KEY.digest.encode() not in content(path)


async def test_nothing_is_done_after_the_end(path: Path) -> None:
    async with JournalUsers(path) as users:
        pass
    with pytest.raises(StorageUnavailable, match="closed"):
        await users.add(person("alice@example.com"))


# --- the service made of them ---


@contextmanager
def hook_that_listens(port: int, came: "Queue[dict[str, Any]]") -> Iterator[None]:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Answer) as server:
        Thread(target=server.serve_forever).start()
        yield
        server.shutdown()


def test_the_service_made_of_them_keeps_its_promise_through_a_kill(tmp_path: Path) -> None:
    hook, came = free_port(), Queue[dict[str, Any]]()
    port = str(free_port())
    settings = {
        "USERSVC_PORT": port,
        "WEBHOOK_URL": f"http://127.0.0.1:{hook}/",
        "WEBHOOK_SECRET": "shared",
        "PYTHONPATH": str(ROOT),
    }
    # uvicorn, with half a second in place of five before the second attempt.
    program = (
        "import datetime, uvicorn, usersvc.application.mail_delivery as notifications;"
        "notifications.FIRST_DELAY = datetime.timedelta(seconds=0.5); uvicorn.main()"
    )
    command = [sys.executable, "-c", program, "--factory", "docs.examples.service:create_asgi_app", "--port", port]
    first = Service(tmp_path, settings, command)
    first.wait_until_it_responds()
    with first.client() as client:
        body = {"email": "alice@example.com", "password": "correct horse battery staple", "age": 30}
        registered = client.post("/register", json=body)
        assert registered.status_code == 201
        assert client.post("/register", json=body).status_code == 409
    # Nobody listens yet, and the process dies.
    first.wait_for_output(r"attempt 1 to welcome")
    first.kill()

    with hook_that_listens(hook, came):
        second = Service(tmp_path, settings, command)
        try:
            second.wait_until_it_responds()
            with second.client() as client:
                assert client.get("/users").json()["data"] == [registered.json()["data"]]
            message = came.get(timeout=DEADLINE)
        finally:
            second.stop()
    assert message["data"] == {"id": registered.json()["data"]["id"], "email": "alice@example.com"}
