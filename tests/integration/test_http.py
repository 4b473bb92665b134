"""The web side over aiohttp's own server, on fakes."""

import asyncio
import gc
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock
from uuid import UUID

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from tests.asgi.fake_server import FakeServer
from tests.fakes import quick_app
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.errors import StorageUnavailable
from usersvc.application.request_context import RequestContext
from usersvc.asgi import AiohttpASGI, Message
from usersvc.web.problems import PROBLEMS
from usersvc.web.responses import stream_response

Client = TestClient[web.Request, web.Application]
Connect = Callable[[web.Application], Awaitable[Client]]

UNKNOWN_ID = "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"
JSON = {"Content-Type": "application/json"}
ALICE: dict[str, Any] = {"email": "Alice@example.com", "password": "correct horse battery", "age": 30}


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[Client] = []

    async def connect_to(app: web.Application) -> Client:
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield connect_to
    for client in clients:
        await client.close()


@pytest.fixture
async def client(connect: Connect) -> Client:
    return await connect(quick_app())


async def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """Check that a response is this problem, and return its document."""
    assert response.status == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    document: dict[str, Any] = await response.json()
    assert document["code"] == code
    assert document["type"] == f"/problems/{code}"
    assert document["status"] == status
    assert document["title"] == PROBLEMS[code].title
    assert document["detail"]
    assert response.headers["X-Request-ID"] in document["instance"]
    return document


async def flaws(response: Any) -> list[str]:
    """The fields and codes of a validation error."""
    document = await problem(response, 422, "validation-failed")
    assert all(flaw["message"] for flaw in document["errors"])
    return [f"{flaw['field']} {flaw['code']}" for flaw in document["errors"]]


class TestRegister:
    async def test_responds_with_the_user_and_its_location(self, client: Client) -> None:
        response = await client.post("/register", json=ALICE)
        document = await response.json()

        assert response.status == 201
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"
        assert response.headers["Location"] == f"/users/{document['data']['id']}"
        assert list(document) == ["data"]
        assert list(document["data"]) == ["id", "email", "age", "registered_at"]
        assert document["data"]["email"] == "Alice@example.com"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", document["data"]["registered_at"])
        assert UUID(document["data"]["id"]).version == 7
        shown = await client.get(response.headers["Location"])
        assert (shown.status, await shown.json()) == (200, document)

    async def test_refuses_a_taken_mailbox(self, client: Client) -> None:
        await client.post("/register", json=ALICE)
        again = await client.post("/register", json={**ALICE, "email": "alice@EXAMPLE.com"})
        assert "alice" not in str(await problem(again, 409, "email-taken")).lower()

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ({}, "email required, password required, age required"),
            (dict.fromkeys(ALICE), "email wrong-type, password wrong-type, age wrong-type"),
            (
                {"email": 5, "password": "password", "age": 17, "admin": True},
                "email wrong-type, admin unknown-field, password common-password, age out-of-range",
            ),
            (
                {"email": "invalid", "password": "invalid", "age": "30"},
                "age wrong-type, email invalid-email, password too-short, password same-as-email",
            ),
            ({**ALICE, "email": ["alice@example.com"]}, "email wrong-type"),
            ({**ALICE, "password": {"clear": "hunter2"}}, "password wrong-type"),
            ({**ALICE, "email": "\ud800@example.com"}, "email invalid-email"),
            ({**ALICE, "password": "half a pair \ud800"}, "password invalid-character"),
            ({**ALICE, "\ud800": 1}, "\\ud800 unknown-field"),
            ({**ALICE, "x" * 1000: 1}, f"{'x' * 64} unknown-field"),
            ({**ALICE, "_schema": 1}, "_schema unknown-field"),
            ({**ALICE, **dict.fromkeys(map(str, range(97)))}, ", ".join(f"{n} unknown-field" for n in range(97))),
            ({**ALICE, **dict.fromkeys(map(str, range(98)))}, "body too-many"),
            *((body, "body wrong-type") for body in ([ALICE], "alice", 17, None)),
        ],
    )
    async def test_reports_every_broken_field(self, client: Client, body: object, expected: str) -> None:
        response = await client.post("/register", data=json.dumps(body), headers=JSON)
        assert sorted(await flaws(response)) == sorted(expected.split(", "))

    @pytest.mark.parametrize(
        ("age", "code"),
        [
            *((age, "wrong-type") for age in ("true", "30.0", "30.5", "[30]", "1e400", "-1e400", "3e1", "9" * 5000)),
            *((age, "out-of-range") for age in ("131", "-0", "-" + "9" * 30)),
        ],
    )
    async def test_refuses_numbers_that_are_not_an_age(self, client: Client, age: str, code: str) -> None:
        body = f'{{"email": "alice@example.com", "password": "correct horse battery", "age": {age}}}'
        assert await flaws(await client.post("/register", data=body, headers=JSON)) == [f"age {code}"]

    @pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 5000])
    async def test_refuses_malformed_json(self, client: Client, body: bytes) -> None:
        response = await client.post("/register", data=body, headers=JSON)
        await problem(response, 400, "malformed-json")

    @pytest.mark.parametrize(
        ("content_type", "status"),
        [
            ("Application/JSON", 201),
            ("application/json; charset=UTF-8", 201),
            *((f"application/{subtype}", 415) for subtype in ("x-www-form-urlencoded", "jsonp", "json-patch+json")),
            *((other, 415) for other in ("application/json; charset=utf-16", "text/plain", "json", None)),
        ],
    )
    async def test_accepts_json_in_utf_8_only(self, client: Client, content_type: str | None, status: int) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        skipped = ["Content-Type"] if content_type is None else []
        response = await client.post("/register", data=json.dumps(ALICE), headers=headers, skip_auto_headers=skipped)
        assert response.status == status
        if status == 415:
            await problem(response, 415, "unsupported-media-type")
            assert response.headers["Accept"] == "application/json"

    @pytest.mark.parametrize("key", ["x", "!", "~" * 255, '"quoted"', "a,b;c=d"])
    async def test_accepts_a_key_of_visible_ascii(self, client: Client, key: str) -> None:
        first, second = [await client.post("/register", json=ALICE, headers={"Idempotency-Key": key}) for _ in range(2)]
        assert (first.status, second.status) == (201, 201)
        assert second.headers["Idempotency-Replayed"] == "true"
        assert await second.json() == await first.json()

    @pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\tb", "ümlaut"])
    async def test_reports_an_invalid_key_with_the_other_broken_fields(self, client: Client, key: str) -> None:
        response = await client.post("/register", json={**ALICE, "age": 3}, headers={"Idempotency-Key": key})
        assert await flaws(response) == ["Idempotency-Key invalid-key", "age out-of-range"]

    async def test_reports_the_broken_fields_of_query_headers_and_body_in_order(self, client: Client) -> None:
        headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
        response = await client.post("/register?x=1", json={**ALICE, "age": 3}, headers=headers)
        assert await flaws(response) == ["x unknown-field", "Idempotency-Key repeated", "age out-of-range"]

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_accepts_a_body_up_to_the_limit(self, connect: Connect, chunked: bool) -> None:
        client = await connect(quick_app(max_body_bytes=1000))
        small = b'{"email": "alice@example.com", "password": "correct horse battery", "age": 30}'

        async def pieces(body: bytes) -> AsyncIterator[bytes]:
            yield body[:500]
            yield body[500:]

        for length, status in ((1000, 201), (1001, 413)):
            body = small.ljust(length)
            response = await client.post("/register", data=pieces(body) if chunked else body, headers=JSON)
            assert response.status == status
        await problem(response, 413, "body-too-large")

    async def test_refuses_a_body_that_does_not_arrive_in_time(
        self, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("usersvc.web.parsing.BODY_TIMEOUT", 0.05)
        client = await connect(quick_app())
        never = asyncio.Event()

        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await never.wait()

        async with client.post("/register", data=stalled(), headers=JSON) as response:
            await problem(response, 408, "request-timeout")


class TestList:
    async def test_is_empty_without_users(self, client: Client) -> None:
        response = await client.get("/users")
        assert await response.json() == {"data": [], "links": {"self": "/users?limit=50&order=asc", "next": None}}
        assert "Link" not in response.headers

    @pytest.mark.parametrize("order", ["asc", "desc"])
    async def test_pages_are_linked(self, client: Client, order: str) -> None:
        registered = []
        for n in range(5):
            response = await client.post("/register", json={**ALICE, "email": f"user{n}@example.com"})
            registered.append((await response.json())["data"])

        seen: list[Any] = []
        link: str | None = f"/users?limit=2&order={order}"
        while link:
            response = await client.get(link)
            document = await response.json()
            assert response.status == 200
            assert response.headers["Cache-Control"] == "no-store"
            assert document["links"]["self"] == link
            seen += document["data"]
            link = document["links"]["next"]
            assert response.headers.get("Link") == (f'<{link}>; rel="next"' if link else None)

        assert seen == (registered if order == "asc" else registered[::-1])

    async def test_can_be_filtered_by_mailbox(self, client: Client) -> None:
        await client.post("/register", json={**ALICE, "email": "josé+x@example.com"})
        await client.post("/register", json={**ALICE, "email": "bob@example.com"})

        response = await client.get("/users", params={"email": "JOSE\u0301+x@example.com"})
        document = await response.json()

        assert [user["email"] for user in document["data"]] == ["josé+x@example.com"]
        assert document["links"] == {
            "self": "/users?limit=50&order=asc&email=JOSE%CC%81%2Bx%40example.com",
            "next": None,
        }
        again = await client.get(document["links"]["self"])
        assert await again.json() == document
        other = await client.get("/users", params={"email": "carol@example.com"})
        assert (await other.json())["data"] == []

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            *((f"limit={limit}", "limit out-of-range") for limit in ("0", "201", "-1", "1_0", "%201", "%D9%A1", "")),
            ("limit=9999999999999999999999", "limit out-of-range"),
            ("limit=1&limit=1", "limit repeated"),
            *((f"order={order}", "order not-a-choice") for order in ("up", "DESC")),
            *((f"cursor={cursor}", "cursor invalid-cursor") for cursor in ("x", "", "%00%ff", "ZGVzYy4x")),
            *((f"email={email}", "email invalid-email") for email in ("invalid", "%FF")),
            ("offset=1&offset=2", "offset unknown-field"),
            ("&".join(map(str, range(100))), ", ".join(f"{n} unknown-field" for n in range(100))),
            ("&".join(map(str, range(101))), "query too-many"),
            ("&".join(["limit=1"] * 101), "query too-many"),
            (
                "limit=x&order=x&cursor=x&email=x&x=x&limit=1",
                "limit repeated, order not-a-choice, cursor invalid-cursor, email invalid-email, x unknown-field",
            ),
        ],
    )
    async def test_reports_every_bad_parameter(self, client: Client, query: str, expected: str) -> None:
        assert sorted(await flaws(await client.get(f"/users?{query}"))) == sorted(expected.split(", "))

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/openapi.json", "/problems/not-found", "/users/x"])
    async def test_reports_each_unknown_parameter_once(self, client: Client, path: str) -> None:
        response = await client.get(f"{path}?odd=1&odd=2&{'x' * 100}=")
        assert sorted(await flaws(response)) == ["odd unknown-field", f"{'x' * 64} unknown-field"]


class TestShow:
    @pytest.mark.parametrize("user_id", [UNKNOWN_ID, "invalid", "0", "1", "1e3", "null", "%00", "%FF", "a%2Fb"])
    async def test_unknown_user_is_not_found(self, client: Client, user_id: str) -> None:
        await problem(await client.get(f"/users/{user_id}"), 404, "user-not-found")

    async def test_accepts_an_id_in_canonical_form_only(self, client: Client) -> None:
        registered = await (await client.post("/register", json=ALICE)).json()
        user_id = registered["data"]["id"]

        assert (await client.get(f"/users/{user_id.upper()}")).status == 200
        for other in (user_id.replace("-", ""), f"{{{user_id}}}", f"urn:uuid:{user_id}", f"%20{user_id[1:]}"):
            await problem(await client.get(f"/users/{other}"), 404, "user-not-found")


class TestEveryResponse:
    @pytest.mark.parametrize(
        "path", ["/nope", "/nope/", "/register/", "/users/", "/users//", "/USERS", "/problems/nope"]
    )
    async def test_for_an_unknown_path_is_a_problem(self, client: Client, path: str) -> None:
        await problem(await client.get(path), 404, "not-found")

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PUT", "/register", "POST"),
            ("HEAD", "/register", "POST"),
            ("POST", "/users", "GET,HEAD"),
            ("DELETE", f"/users/{UNKNOWN_ID}", "GET,HEAD"),
            ("PROPFIND", "/livez", "GET,HEAD"),
            ("OPTIONS", "/users", "GET,HEAD"),
        ],
    )
    async def test_to_a_wrong_method_lists_the_allowed_ones(
        self, client: Client, method: str, path: str, allowed: str
    ) -> None:
        response = await client.request(method, path)
        if method == "HEAD":
            assert (response.status, await response.read()) == (405, b"")
        else:
            await problem(response, 405, "method-not-allowed")
        assert response.headers["Allow"] == allowed

    @pytest.mark.parametrize(
        ("path", "accept"), [("/users", "text/html"), ("/livez", "text/html"), ("/docs", "application/json")]
    )
    async def test_is_refused_if_the_client_does_not_accept_its_media_type(
        self, client: Client, path: str, accept: str
    ) -> None:
        await problem(await client.get(path, headers={"Accept": accept}), 406, "not-acceptable")

    async def test_that_is_not_acceptable_registers_no_user(self, client: Client) -> None:
        refused = await client.post("/register", json=ALICE, headers={"Accept": "application/xml"})
        await problem(refused, 406, "not-acceptable")
        assert (await (await client.get("/users")).json())["data"] == []

    @pytest.mark.parametrize("request_id", ["42", "a-b_c.d~1", "a/b=c:d@e+f", "x" * 128])
    async def test_has_the_request_id_of_the_client(self, client: Client, request_id: str) -> None:
        response = await client.get("/livez", headers={"X-Request-ID": request_id})
        assert response.headers["X-Request-ID"] == request_id

    @pytest.mark.parametrize("request_id", ["", "with space", "a\tb", "<script>", "x" * 129, "ümlaut", '"'])
    async def test_replaces_an_invalid_request_id(self, client: Client, request_id: str) -> None:
        response = await client.get("/nope", headers={"X-Request-ID": request_id})
        assert UUID(response.headers["X-Request-ID"])
        await problem(response, 404, "not-found")
        assert (await client.get("/livez")).headers["X-Request-ID"] != response.headers["X-Request-ID"]

    async def test_to_head_is_that_to_get_without_a_body(self, connect: Connect) -> None:
        async def metrics() -> bytes:
            return b"users 1\n"

        client = await connect(quick_app(metrics=metrics))
        registered = (await (await client.post("/register", json=ALICE)).json())["data"]["id"]
        documented = (await (await client.get("/openapi.json")).json())["paths"]
        paths = [
            path.format(user_id=registered, code="email-taken") for path in documented if "get" in documented[path]
        ]
        assert {"/users", "/livez", "/readyz", "/openapi.json", "/metrics", f"/users/{registered}"} < set(paths)
        for path in (*paths, "/docs", "/docs/static/swagger-ui.css", "/nope", f"/users/{UNKNOWN_ID}", "/users?limit=0"):
            got = await client.get(path, headers={"X-Request-ID": "same"})
            head = await client.head(path, headers={"X-Request-ID": "same"})
            assert head.status == got.status
            assert {**head.headers, "Date": ""} == {**got.headers, "Date": ""}
            assert await head.read() == b""
            assert len(await got.read()) == int(got.headers["Content-Length"]) > 0


class BrokenUsers(InMemoryUsers):
    """A store that always fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        failing: Any = AsyncMock(side_effect=error)
        self.add = self.find = self.page = self.check = failing  # type: ignore[method-assign]  # of this instance


async def test_stream_is_closed_and_reported_at_once_when_the_client_disconnects() -> None:
    happened: list[object] = []

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"{}\n"
        finally:
            happened.append("freed")

    async def stream(_: web.Request) -> web.Response:
        return await stream_response(endless(), "application/json")

    app = quick_app(observe=lambda *request: happened.append(request[:3]))
    app.router.add_get("/endless", stream)
    server = FakeServer(path="/endless")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client has disconnected")

    # Without it, whatever is part of a reference cycle stays.
    gc.collect()
    gc.disable()
    try:
        await AiohttpASGI(app)(server.scope, server.receive, send)
        assert happened == ["freed", ("GET", "/endless", 200)]
    finally:
        gc.enable()


class TestFailure:
    async def test_of_the_storage_is_reported(self, connect: Connect) -> None:
        client = await connect(quick_app(BrokenUsers(StorageUnavailable("disk on fire"))))

        for response in (
            await client.get("/readyz"),
            await client.get("/users"),
            await client.get("/users/01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"),
            await client.post("/register", json=ALICE),
        ):
            document = await problem(response, 503, "storage-unavailable")
            assert int(response.headers["Retry-After"]) > 0
            assert "fire" not in str(document)
        assert (await client.get("/livez")).status == 200

    async def test_that_is_unexpected_is_logged_but_not_revealed(
        self, connect: Connect, caplog: pytest.LogCaptureFixture
    ) -> None:
        client = await connect(quick_app(BrokenUsers(ZeroDivisionError("secret detail"))))

        with caplog.at_level(logging.ERROR):
            response = await client.post("/register", json=ALICE, headers={"X-Request-ID": "the-request"})

        document = await problem(response, 500, "internal-error")
        assert "secret detail" not in str(document)
        assert [vars(record)["request_id"] for record in caplog.records] == ["the-request"]
        assert "ZeroDivisionError: secret detail" in caplog.text
        assert ALICE["password"] not in caplog.text

    async def test_of_a_client_to_stay_connected_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        server = FakeServer.of_upload(99, path="/register", headers=[(b"content-type", b"application/json")])
        server.put(b"{", more=True)
        server.disconnect()

        with caplog.at_level(logging.INFO):
            await server.serve(AiohttpASGI(quick_app()))

        assert (server.sent, caplog.text) == ([], "")

    async def test_of_the_content_coding_is_reported(self, client: Client) -> None:
        response = await client.post(
            "/register", data=b"no gzip", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
        )
        await problem(response, 400, "malformed-json")


class TestLifeCycle:
    async def test_resources_are_open_while_it_serves(self, connect: Connect) -> None:
        steps: list[str] = []

        @asynccontextmanager
        async def resources() -> AsyncIterator[None]:
            steps.append("open")
            yield
            steps.append("close")

        client = await connect(quick_app(resources=resources))
        assert (await client.get("/livez")).status == 200
        assert steps == ["open"]
        await client.close()
        assert steps == ["open", "close"]


class TestAccessLog:
    @pytest.fixture
    def lines(self, caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[dict[str, Any]]]]:
        def logged() -> list[dict[str, Any]]:
            names = ("method", "route", "status", "bytes", "client", "request_id")
            records = [vars(record) for record in caplog.records if record.name == "usersvc.access"]
            assert all(record["milliseconds"] >= 0 for record in records)
            return [{name: record[name] for name in names} for record in records]

        with caplog.at_level(logging.INFO, "usersvc.access"):
            yield logged

    async def test_has_the_route_and_neither_path_nor_query(
        self, client: Client, lines: Callable[[], list[dict[str, Any]]]
    ) -> None:
        await client.get("/users?email=alice@example.com", headers={"X-Request-ID": "one"})
        await client.get("/users/hunter2hunter2", headers={"X-Request-ID": "two"})
        await client.get("/hunter2hunter2", headers={"X-Request-ID": "three"})

        logged = [(line["method"], line["route"], line["status"], line["request_id"]) for line in lines()]
        assert logged == [
            ("GET", "/users", 200, "one"),
            ("GET", "/users/{user_id}", 404, "two"),
            ("GET", "(no route)", 404, "three"),
        ]
        assert "hunter2" not in str(lines())

    @pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
    async def test_has_the_client_and_the_size_also_of_a_stream(
        self, client: Client, lines: Callable[[], list[dict[str, Any]]], accept: str
    ) -> None:
        await client.post("/register", json={"email": "a@example.com", "password": "correct horse", "age": 30})
        body = await (await client.get("/users", headers={"Accept": accept})).read()
        await client.head("/users", headers={"Accept": accept})

        _, got, head = lines()
        assert (got["bytes"], got["client"]) == (len(body), "127.0.0.1")
        assert (head["method"], head["bytes"]) == ("HEAD", 0)

    @pytest.mark.parametrize(
        ("header", "trace"),
        [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "0af7651916cd43dd8448eb211c80319c"),
            ("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "0af7651916cd43dd8448eb211c80319c"),
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", None),
            ("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", None),
            ("00-00000000000000000000000000000000-b7ad6b7169203331-01", None),
            ("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", None),
            ("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", None),
            ("alice@example.com", None),
        ],
    )
    async def test_valid_trace_is_kept_for_the_notification(
        self, connect: Connect, header: str, trace: str | None
    ) -> None:
        users = InMemoryUsers()
        client = await connect(quick_app(users))
        sent = {"email": "a@example.com", "password": "correct horse", "age": 30}
        await client.post("/register", json=sent, headers={"traceparent": header, "X-Request-ID": "one"})

        [entry] = await users.outbox.entries()
        assert entry.context == RequestContext("one", trace)
