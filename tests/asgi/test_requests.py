"""What handlers see of a request's head."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from tests.asgi.fake_server import FakeServer, app_of, hello, respond, streaming


async def view(look: Callable[[web.Request], Any], **scope: Any) -> Any:
    """Call a function with the request that a handler gets."""
    found: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        found.append(look(request))
        return web.Response()

    server = await respond(handler, **scope)
    assert server.status == 200, server.body
    return found[0]


@pytest.mark.parametrize(
    ("scope", "target"),
    [
        ({"path": "/a b", "raw_path": b"/a%20b", "query_string": b"x=%20"}, "/a%20b?x=%20"),
        ({"path": "/a b/\u00e9", "raw_path": None}, "/a%20b/%C3%A9"),
        ({"path": "/a", "raw_path": b"/a?x=1", "query_string": b"x=1"}, "/a?x=1"),
        ({"path": "/api/a", "raw_path": b"/api/a", "root_path": "/api"}, "/a"),
        ({"path": "/api/a", "raw_path": b"/api/a", "root_path": "/api/", "query_string": b"/api/b"}, "/a?/api/b"),
        ({"path": "/a p/i/b", "raw_path": b"/a%20p/i/b%2Fc", "root_path": "/a p/i"}, "/b%2Fc"),
        ({"path": "/api", "raw_path": b"/api", "root_path": "/api"}, "/"),
        ({"path": "/apis/a", "raw_path": b"/apis/a", "root_path": "/api"}, "/apis/a"),
        ({"path": "/a", "raw_path": b"/a", "root_path": "/api"}, "/a"),
        ({"path": "", "raw_path": b""}, "/"),
        ({"path": "/" + "x" * 5000, "raw_path": b"/" + b"x" * 5000}, "/" + "x" * 5000),
        ({"raw_path": b"/\xff"}, "/\udcff"),
    ],
)
async def test_targets(scope: dict[str, Any], target: str) -> None:
    assert await view(lambda request: request.raw_path, **scope) == target


@pytest.mark.parametrize("raw", [b"nowhere", b"http://[::1/", b"http:///a"])
async def test_malformed_targets_get_400(raw: bytes) -> None:
    server = await respond(hello, path="/", raw_path=raw)
    assert (server.status, server.complete, server.headers[b"connection"]) == (400, True, b"close")


async def test_host_comes_from_an_absolute_target() -> None:
    url = await view(lambda request: request.url, raw_path=b"http://other.example/a")
    assert str(url) == "http://other.example/a"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, ("http", False, "192.0.2.1", "example.org")),
        ({"scheme": "https", "client": None}, ("https", True, None, "example.org")),
        ({"headers": [], "server": ("::1", 80), "client": ("::2", 1)}, ("http", False, "::2", "example.org")),
    ],
)
async def test_scheme_client_and_host(scope: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert await view(lambda r: (r.scheme, r.secure, r.remote, r.host), **scope) == expected
    assert await view(lambda r: r.clone().scheme, **scope) == expected[0]


@pytest.mark.parametrize(
    ("server", "host"),
    [(("192.0.2.2", 80), "192.0.2.2"), (("::1", 80), "[::1]"), (("/run/s", None), "/run/s"), (None, "")],
)
async def test_host_defaults_to_the_address_of_the_server(server: Any, host: str) -> None:
    def look(request: web.Request) -> str:
        return request.clone(headers={}).host

    assert await view(look, server=server, http_version="1.0") == host


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", None, True), ("1.1", b"Close", False), ("1.1", b"upgrade", True), ("1.0", None, False),
        ("1.0", b"Keep-Alive", True), ("2", None, True),
    ],
)  # fmt: skip
async def test_keep_alive_follows_version_and_connection(version: str, connection: bytes | None, stays: bool) -> None:
    headers = [(b"connection", connection)] if connection else []
    assert await view(lambda request: request.keep_alive, http_version=version, headers=headers) is stays


async def test_http_2_version_equals_1_1_as_well() -> None:
    version = await view(lambda request: request.version, http_version="2")
    assert (version.major, version.minor) == (2, 0)
    assert version == (2, 0)
    assert version == (1, 1)
    assert version != (1, 0)
    assert version > (1, 1)
    assert hash(version) == hash((1, 1))


@pytest.mark.parametrize(("version", "cookies"), [("2", {"a": "1", "b": "2"}), ("1.1", {"a": "1"})])
async def test_cookie_fields_of_http_2_are_joined(version: str, cookies: dict[str, str]) -> None:
    headers = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    assert await view(lambda request: dict(request.cookies), http_version=version, headers=headers) == cookies


@pytest.mark.parametrize(
    ("method", "headers", "messages", "has_body"),
    [
        ("GET", [], [(b"", False)], False),
        ("GET", [], [(b"x", False)], True),
        ("DELETE", [], [(b"", True), (b"", False)], True),
        ("POST", [], [(b"", False)], True),
        ("GET", [(b"content-length", b"1")], [(b"x", False)], True),
        ("POST", [(b"content-length", b"0")], [(b"", False)], False),
    ],
)
async def test_http_2_request_has_a_body_if_its_first_message_has(
    method: str, headers: list[tuple[bytes, bytes]], messages: list[tuple[bytes, bool]], has_body: bool
) -> None:
    found: list[tuple[bool, bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        found.append((request.body_exists, await request.read()))
        return web.Response()

    server = FakeServer(http_version="2", method=method, headers=headers)
    server.incoming.get_nowait()
    for body, more in messages:
        server.put(body, more=more)
    await server.serve(app_of(handler))
    assert found == [(has_body, b"".join(body for body, _ in messages))]


async def test_trailer_fields_appended_to_the_scope_are_ignored() -> None:
    seen: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        server.scope["headers"].append((b"authorization", b"Bearer trailer"))
        seen.extend([*request.headers, *(name for name, _ in request.clone().raw_headers)])
        return web.Response()

    server = FakeServer(body=b"hello")
    await server.serve(app_of(handler))
    assert seen == ["Host", "Content-Length", b"host", b"content-length"]


async def test_http_2_request_whose_client_disconnects_at_once_is_not_handled() -> None:
    server = FakeServer(http_version="2")
    server.incoming.get_nowait()
    server.disconnect()
    await server.serve(app_of(hello))
    assert server.sent == []


async def test_receive_and_send_may_return_futures() -> None:
    server = FakeServer(body=b"hello")

    def receive() -> Awaitable[Any]:
        return asyncio.ensure_future(server.receive())

    def send(message: Any) -> Awaitable[None]:
        return asyncio.ensure_future(server.send(message))

    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        response = await streaming(request)
        await response.write(body)
        return response

    await app_of(handler)(server.scope, receive, send)
    assert server.body == b"onehello"
