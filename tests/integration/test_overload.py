"""What the web side does when there is no room for a registration, and when whoever waits for one goes."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.asgi.fake_server import FakeServer
from tests.fakes import QuickHasher
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.errors import QueueFull
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.read_models import Order
from usersvc.application.registration import UserRegistrationService
from usersvc.asgi import AiohttpASGI, cancel_on_disconnect
from usersvc.domain.user import Password, PasswordHash, User
from usersvc.web.app import create_app

Client = TestClient[web.Request, web.Application]

ALICE: dict[str, Any] = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}


class SlowHasher(QuickHasher):
    """A hasher that is asked, and then waits to be let go; it has room for one."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()
        self.let_go = asyncio.Event()
        self.full = False

    async def hash(self, password: Password) -> PasswordHash:
        self.check_capacity()
        self.full = True
        self.asked.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        finally:
            self.full = False
        return await super().hash(password)

    def check_capacity(self) -> None:
        if self.full:
            raise QueueFull(7)


class SlowUsers(InMemoryUsers):
    """A store that is asked, and then waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        self.asked.set()
        await self.let_go.wait()
        await super().add(user, key=key)


async def assert_overloaded(response: Any, retry_after: str = "7") -> None:
    assert response.status == 503
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == retry_after
    document = await response.json()
    assert (document["code"], document["type"]) == ("overloaded", "/problems/overloaded")
    assert response.headers["X-Request-ID"] in document["instance"]


class TestWithoutRoom:
    @pytest.fixture
    async def hasher(self) -> SlowHasher:
        return SlowHasher()

    @pytest.fixture(params=["refused before the body", "refused by the hasher"])
    async def client(self, request: pytest.FixtureRequest, hasher: SlowHasher) -> AsyncIterator[Client]:
        service = UserRegistrationService(InMemoryUsers(), hasher)
        early = request.param == "refused before the body"
        app = create_app(service, check_capacity=hasher.check_capacity) if early else create_app(service)
        async with TestClient(TestServer(app)) as client:
            yield client

    async def test_a_registration_is_told_to_come_again_and_when(self, client: Client, hasher: SlowHasher) -> None:
        first = asyncio.create_task(client.post("/register", json=ALICE))
        await hasher.asked.wait()
        for _ in range(3):
            await assert_overloaded(await client.post("/register", json={**ALICE, "email": "bob@example.com"}))
        hasher.let_go.set()
        assert (await first).status == 201
        assert (await client.post("/register", json={**ALICE, "email": "bob@example.com"})).status == 201

    async def test_everything_else_answers_as_ever(self, client: Client, hasher: SlowHasher) -> None:
        hasher.full = True
        for path in ("/livez", "/readyz", "/users", "/openapi.json"):
            assert (await client.get(path)).status == 200
        assert (await client.post("/users", json=ALICE)).status == 405
        assert (await client.get("/register")).status == 405
        assert (await client.post("/nowhere", json=ALICE)).status == 404


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"{}", "application/json"),
        (b"x" * 100_000, "application/json"),
        (b"a=b", "application/x-www-form-urlencoded"),
    ],
)
async def test_without_room_no_body_is_looked_at(body: bytes, media_type: str) -> None:
    hasher = SlowHasher()
    hasher.full = True
    app = create_app(UserRegistrationService(InMemoryUsers(), hasher), check_capacity=hasher.check_capacity)
    async with TestClient(TestServer(app)) as client:
        await assert_overloaded(await client.post("/register", data=body, headers={"Content-Type": media_type}))
        hasher.full = False
        assert (await client.post("/register", data=body, headers={"Content-Type": media_type})).status != 503


async def test_a_real_hasher_tells_when_to_come_again_and_serves_whom_it_has_taken() -> None:
    async with BcryptPasswordHasher(cost=10, workers=1, queue=2) as hasher:
        service = UserRegistrationService(InMemoryUsers(), hasher)
        app = create_app(service, check_capacity=hasher.check_capacity)
        async with TestClient(TestServer(app)) as client:
            people = [{**ALICE, "email": f"user{n}@example.com"} for n in range(12)]
            answers = await asyncio.gather(*(client.post("/register", json=person) for person in people))
            taken = [answer for answer in answers if answer.status == 201]
            refused = [answer for answer in answers if answer.status == 503]
            assert len(taken) >= 3
            assert len(taken) + len(refused) == 12
            for answer in refused:
                await assert_overloaded(answer, retry_after="1")
            listed = (await (await client.get("/users")).json())["data"]
            assert len(listed) == len(taken)
            assert (await client.post("/register", json=ALICE)).status == 201


class TestAClientThatGoes:
    @pytest.fixture
    def server(self) -> FakeServer:
        return FakeServer(
            body=json.dumps(ALICE).encode(), path="/register", headers=[(b"content-type", b"application/json")]
        )

    async def test_while_it_waits_for_its_turn_gives_it_up_and_that_is_no_failure(
        self, server: FakeServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        hasher, users = SlowHasher(), InMemoryUsers()
        app = AiohttpASGI(create_app(UserRegistrationService(users, hasher), waiting_client=cancel_on_disconnect))
        with caplog.at_level(logging.INFO):
            serving = asyncio.create_task(server.serve(app))
            await hasher.asked.wait()
            server.disconnect()
            await hasher.given_up.wait()
            await serving

        assert server.sent == []
        assert caplog.text == ""
        assert (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users == []

    async def test_while_it_is_stored_is_registered_and_told(self, server: FakeServer) -> None:
        told: list[str] = []
        users = SlowUsers()
        service = UserRegistrationService(users, QuickHasher(), on_registered=lambda: told.append("somebody"))
        serving = asyncio.create_task(
            server.serve(AiohttpASGI(create_app(service, waiting_client=cancel_on_disconnect)))
        )
        await users.asked.wait()
        server.disconnect()
        while not server.incoming.empty():  # noqa: ASYNC110  # until the service has heard of it
            await asyncio.sleep(0)
        users.let_go.set()
        await serving

        [user] = (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users
        assert user["email"] == "alice@example.com"
        assert told == ["somebody"]

    @pytest.mark.parametrize("more", [{}, {"waiting_client": cancel_on_disconnect}])
    async def test_and_a_server_that_stops_are_not_the_same(self, server: FakeServer, more: dict[str, Any]) -> None:
        hasher = SlowHasher()
        app = AiohttpASGI(create_app(UserRegistrationService(InMemoryUsers(), hasher), **more))
        serving = asyncio.create_task(server.serve(app))
        await hasher.asked.wait()
        serving.cancel()
        await serving

        document = json.loads(server.body)
        assert (server.status, document["status"], document["code"]) == (503, 503, "overloaded")
        assert server.headers[b"content-type"] == b"application/problem+json"
        assert server.headers[b"x-request-id"].decode() in document["instance"]
        assert int(server.headers[b"retry-after"]) > 0
