"""The web side when the hasher is overloaded, and when a client disconnects while it waits."""

import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.asgi.fake_server import FakeServer
from tests.fakes import QuickHasher, quick_app
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.errors import QueueFull
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.ports import PasswordHasher
from usersvc.application.read_models import Order
from usersvc.application.registration import UserRegistrationService
from usersvc.asgi import AiohttpASGI, cancel_on_disconnect
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

ALICE: dict[str, Any] = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


class SlowHasher(QuickHasher):
    """A hasher that is full or never returns."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()
        self.full = False

    async def hash(self, password: Password) -> PasswordHash:
        if self.full:
            raise QueueFull(7)
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up.set()
        return await super().hash(password)


class SlowUsers(InMemoryUsers):
    """A store that stores a user and then does not return."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = asyncio.Event()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        await super().add(user, key=key)
        self.stored.set()
        await asyncio.Event().wait()


def app_with(hasher: PasswordHasher, users: InMemoryUsers | None = None, **options: Any) -> web.Application:
    users = users or InMemoryUsers()
    return quick_app(users, service=UserRegistrationService(users, hasher), **options)


async def assert_overloaded(response: Any, retry_after: str) -> None:
    assert response.status == 503
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == retry_after
    document = await response.json()
    assert (document["code"], document["type"]) == ("overloaded", "/problems/overloaded")


async def test_only_registrations_are_rejected_while_the_queue_is_full() -> None:
    hasher = SlowHasher()
    hasher.full = True
    async with TestClient(TestServer(app_with(hasher))) as client:
        await assert_overloaded(await client.post("/register", json=ALICE), retry_after="7")
        for path in ("/livez", "/readyz", "/users", "/openapi.json"):
            assert (await client.get(path)).status == 200
        assert (await client.post("/users", json=ALICE)).status == 405


async def test_bcrypt_hasher_rejects_passwords_beyond_its_queue_and_completes_the_others() -> None:
    hasher = BcryptPasswordHasher(cost=10, workers=1, queue=2)
    async with hasher, TestClient(TestServer(app_with(hasher))) as client:
        people = [{**ALICE, "email": f"user{n}@example.com"} for n in range(12)]
        responses = await asyncio.gather(*(client.post("/register", json=person) for person in people))
        rejected = [response for response in responses if response.status != 201]
        for response in rejected:
            await assert_overloaded(response, retry_after="1")
        listed = (await (await client.get("/users")).json())["data"]
        assert len(listed) == len(responses) - len(rejected) >= 3
        assert (await client.post("/register", json=ALICE)).status == 201


class TestClientDisconnects:
    @pytest.fixture
    def server(self) -> FakeServer:
        return FakeServer(
            body=json.dumps(ALICE).encode(), path="/register", headers=[(b"content-type", b"application/json")]
        )

    async def test_while_its_password_waits_cancels_the_registration_silently(
        self, server: FakeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        hasher, users = SlowHasher(), InMemoryUsers()
        app = AiohttpASGI(app_with(hasher, users, cancel_on_disconnect=cancel_on_disconnect))
        with caplog.at_level(logging.INFO):
            serving = asyncio.create_task(server.serve(app))
            await hasher.asked.wait()
            server.disconnect()
            await hasher.given_up.wait()
            await serving

        assert server.sent == []
        assert caplog.text == ""
        assert (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users == []

    async def test_while_the_user_is_stored_leaves_no_half_state_and_wakes_the_delivery(
        self, server: FakeServer
    ) -> None:
        users, woken = SlowUsers(), []
        service = UserRegistrationService(users, QuickHasher(), on_registered=lambda: woken.append(1))
        app = quick_app(users, service=service, cancel_on_disconnect=cancel_on_disconnect)
        serving = asyncio.create_task(server.serve(AiohttpASGI(app)))
        await users.stored.wait()
        server.disconnect()
        await serving

        assert server.sent == []
        [user] = (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users
        [entry] = await users.outbox.entries()
        assert str(entry.event.user_id) == user["id"]
        assert woken == [1]

    @pytest.mark.parametrize("more", [{}, {"cancel_on_disconnect": cancel_on_disconnect}])
    async def test_is_distinguished_from_a_server_that_stops(self, server: FakeServer, more: dict[str, Any]) -> None:
        hasher = SlowHasher()
        app = AiohttpASGI(app_with(hasher, **more))
        serving = asyncio.create_task(server.serve(app))
        await hasher.asked.wait()
        serving.cancel()
        await serving

        assert (server.status, json.loads(server.body)["code"]) == (503, "overloaded")
        assert int(server.headers[b"retry-after"]) > 0
