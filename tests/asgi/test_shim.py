"""The shim by itself, before a fake server: what servers seldom do, and what is hard to see from outside."""

import asyncio
import contextlib
import gc
import gzip
import logging
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import make_mocked_request
from aiohttp.typedefs import Handler

import usersvc.asgi.response_headers
from tests.asgi.fake_server import FakeServer
from usersvc.asgi import ASGI_SCOPE, ASGI_STATE, AiohttpASGI, cancel_on_disconnect


def app_of(handler: Callable[[web.Request], Awaitable[Any]], **arguments: Any) -> AiohttpASGI:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return AiohttpASGI(app, **arguments)


async def told(tell: Callable[[web.Request], Any], **scope: Any) -> Any:
    """What a handler finds out about a request."""
    found: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        found.append(tell(request))
        return web.Response()

    server = await respond(handler, **scope)
    assert server.status == 200, server.body
    return found[0]


async def respond(handler: Callable[[web.Request], Awaitable[Any]], **scope: Any) -> FakeServer:
    """What a handler responds to a request."""
    return await FakeServer(**scope).serve(app_of(handler))


async def live(app: AiohttpASGI, **scope: Any) -> FakeServer:
    """Start an application by the lifespan protocol, and stop it."""
    server = FakeServer(type="lifespan", **scope)
    server.put_type("lifespan.startup")
    server.put_type("lifespan.shutdown")
    return await server.serve(app)


async def until_gone(request: web.Request) -> None:
    """Wait until the client has disconnected, by the idiom of aiohttp's handlers."""
    while request.transport is not None:  # noqa: ASYNC110  # the idiom that is tested
        await asyncio.sleep(0)


def uncancelled() -> bool:
    """Whether no cancellation of the running task is left over."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() == 0


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def streaming(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    return response


def test_what_is_no_application_is_refused() -> None:
    with pytest.raises(TypeError):
        AiohttpASGI(hello)  # type: ignore[arg-type]  # on purpose


# Life


def failing(error: BaseException) -> Callable[[web.Application], Awaitable[None]]:
    async def fail(_: web.Application) -> None:
        raise error

    return fail


def life_of(order: list[str]) -> web.Application:
    app = web.Application()
    sub = web.Application()

    def note(word: str) -> Callable[[web.Application], Awaitable[None]]:
        async def noted(_: web.Application) -> None:
            order.append(word)

        return noted

    async def context(_: web.Application) -> AsyncIterator[None]:
        order.append("context entered")
        yield
        order.append("context left")

    for each, name in ((app, "app"), (sub, "sub")):
        each.on_startup.append(note(f"{name} started"))
        each.on_shutdown.append(note(f"{name} shut down"))
        each.on_cleanup.append(note(f"{name} cleaned up"))
    app.cleanup_ctx.append(context)
    app.add_subapp("/sub", sub)
    return app


async def test_life_has_the_order_of_aiohttp() -> None:
    order: list[str] = []
    reference: list[str] = []
    server = await live(AiohttpASGI(life_of(order)))
    runner = web.AppRunner(life_of(reference))
    await runner.setup()
    await runner.cleanup()
    assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert order == reference
    assert len(order) == 8


async def test_clean_up_happens_when_the_server_gives_up() -> None:
    order: list[str] = []
    server = FakeServer(type="lifespan")
    server.put_type("lifespan.startup")
    task = asyncio.create_task(server.serve(AiohttpASGI(life_of(order))))
    await server.progress.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order[-3:] == ["context left", "app cleaned up", "sub cleaned up"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("a bad\n setting"), "ValueError: a bad setting"),
        (RuntimeError(), "RuntimeError"),
        (SystemExit("stop"), "SystemExit: stop"),
    ],
)
async def test_a_failing_start_is_told_and_cleaned_up(error: BaseException, message: str) -> None:
    order: list[str] = []
    app = life_of(order)
    app.on_startup.append(failing(error))
    assert (await live(AiohttpASGI(app))).sent == [{"type": "lifespan.startup.failed", "message": message}]
    assert "context left" in order


async def test_a_failing_clean_up_is_told(caplog: pytest.LogCaptureFixture) -> None:
    app = web.Application()
    app.on_cleanup.append(failing(ValueError("stuck")))
    server = await live(AiohttpASGI(app))
    assert server.sent[-1] == {"type": "lifespan.shutdown.failed", "message": "ValueError: stuck"}
    assert "clean-up" in caplog.text


async def test_without_a_lifespan_requests_start_the_application_once() -> None:
    order: list[str] = []
    app = AiohttpASGI(life_of(order))
    servers = await asyncio.gather(*(FakeServer().serve(app) for _ in range(5)))
    assert {server.status for server in servers} == {404}
    assert order == ["context entered", "app started", "sub started"]
    assert (await live(app)).types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert order.count("app started") == order.count("app cleaned up") == 1


async def test_without_a_lifespan_a_failing_start_fails_every_request() -> None:
    app = web.Application()
    app.on_startup.append(failing(ValueError("a bad setting")))
    asgi = AiohttpASGI(app)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad setting"):
            await FakeServer().serve(asgi)


@pytest.mark.parametrize("fails", [False, True])
async def test_an_application_has_one_life(fails: bool) -> None:
    order: list[str] = []
    app = life_of(order)
    if fails:
        app.on_startup.append(failing(ValueError("a bad setting")))
    asgi = AiohttpASGI(app)
    types: list[str] = []
    for _ in range(2):
        types += (await live(asgi)).types
    assert types[-1] == "lifespan.startup.failed"
    assert order.count("app started") == order.count("context left") == 1


async def test_the_state_of_the_lifespan_is_the_applications() -> None:
    app = web.Application()

    async def start(app: web.Application) -> None:
        app[ASGI_STATE]["pool"] = "a pool"

    async def tell(request: web.Request) -> web.Response:
        return web.Response(text=request[ASGI_SCOPE]["state"]["pool"])

    app.on_startup.append(start)
    app.router.add_get("/", tell)
    asgi = AiohttpASGI(app)
    state: dict[str, Any] = {}
    lifespan = FakeServer(type="lifespan", state=state)
    lifespan.put_type("lifespan.startup")
    task = asyncio.create_task(lifespan.serve(asgi))
    await lifespan.progress.wait()
    assert (await FakeServer(state=state.copy()).serve(asgi)).body == b"a pool"
    lifespan.put_type("lifespan.shutdown")
    await task


async def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(ValueError, match="carrier-pigeon"):
        await respond(hello, type="carrier-pigeon")


@pytest.mark.parametrize(
    ("extensions", "types"),
    [
        ({}, ["websocket.close"]),
        (None, ["websocket.close"]),
        ({"websocket.http.response": {}}, ["websocket.http.response.start", "websocket.http.response.body"]),
    ],
)
async def test_websockets_are_refused(extensions: dict[str, Any] | None, types: list[str]) -> None:
    server = FakeServer(type="websocket", extensions=extensions)
    server.put_type("websocket.connect")
    await server.serve(app_of(hello))
    assert server.types == types


# Requests


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
    assert await told(lambda request: request.raw_path, **scope) == target


@pytest.mark.parametrize("raw", [b"nowhere", b"http://[::1/", b"http:///a"])
async def test_targets_that_make_no_sense_are_bad_requests(raw: bytes) -> None:
    server = await respond(hello, path="/", raw_path=raw)
    assert (server.status, server.complete, server.headers[b"connection"]) == (400, True, b"close")


async def test_an_absolute_target_names_the_host() -> None:
    url = await told(lambda request: request.url, raw_path=b"http://other.example/a")
    assert str(url) == "http://other.example/a"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, ("http", False, "192.0.2.1", "example.org")),
        ({"scheme": "https", "client": None}, ("https", True, None, "example.org")),
        ({"headers": [], "server": ("::1", 80), "client": ("::2", 1)}, ("http", False, "::2", "example.org")),
    ],
)
async def test_where_a_request_comes_from(scope: dict[str, Any], expected: tuple[Any, ...]) -> None:
    assert await told(lambda r: (r.scheme, r.secure, r.remote, r.host), **scope) == expected
    assert await told(lambda r: r.clone().scheme, **scope) == expected[0]


@pytest.mark.parametrize(
    ("server", "host"),
    [(("192.0.2.2", 80), "192.0.2.2"), (("::1", 80), "[::1]"), (("/run/s", None), "/run/s"), (None, "")],
)
async def test_a_request_without_a_host_is_for_the_servers_address(server: Any, host: str) -> None:
    found: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        found.append(request.host)
        return web.Response()

    fake = FakeServer(server=server, http_version="1.0")
    fake.scope["headers"] = []
    await fake.serve(app_of(handler))
    assert found == [host]


@pytest.mark.parametrize(
    ("version", "connection", "stays"),
    [
        ("1.1", None, True), ("1.1", b"Close", False), ("1.1", b"upgrade", True), ("1.0", None, False),
        ("1.0", b"Keep-Alive", True), ("2", None, True), ("0.9", None, True),
    ],
)  # fmt: skip
async def test_keeping_alive(version: str, connection: bytes | None, stays: bool) -> None:
    headers = [(b"connection", connection)] if connection else []
    assert await told(lambda request: request.keep_alive, http_version=version, headers=headers) is stays


async def test_http_2_may_stream_like_http_1_1() -> None:
    version = await told(lambda request: request.version, http_version="2")
    assert (version.major, version.minor) == (2, 0)
    assert version == (2, 0)
    assert version == (1, 1)
    assert version != (1, 0)
    assert version > (1, 1)
    assert hash(version) == hash((1, 1))


async def test_the_cookies_of_http_2_are_put_together() -> None:
    headers = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    assert await told(lambda request: dict(request.cookies), http_version="2", headers=headers) == {"a": "1", "b": "2"}
    assert await told(lambda request: dict(request.cookies), http_version="1.1", headers=headers) == {"a": "1"}


async def test_header_names_are_learned_within_bounds() -> None:
    headers = [(b"x-%d" % number, b"%d" % number) for number in range(2000)]
    found = await told(lambda request: [v for n, v in request.headers.items() if n.startswith("x-")], headers=headers)
    assert found == [str(number) for number in range(2000)]


async def test_response_headers_are_learned_within_bounds_and_never_mixed_up() -> None:
    values = [f"{number % 3}" if number % 2 else f"{number}" for number in range(100)]
    numbers = iter(values * 2)

    async def handler(_: web.Request) -> web.Response:
        number = next(numbers)
        return web.Response(headers={"X-Number": number, f"x-{number}": "same", "X-Same": "same"})

    app = app_of(handler)
    for number in values * 2:
        sent = (await FakeServer().serve(app)).headers
        assert (sent[b"x-number"], sent[b"x-%s" % number.encode()], sent[b"x-same"]) == (
            number.encode(),
            b"same",
            b"same",
        )


async def test_no_cookie_is_kept() -> None:
    async def handler(_: web.Request) -> web.Response:
        response = web.Response()
        response.set_cookie("session", "a secret of one client")
        return response

    assert b"a secret" in (await respond(handler)).headers[b"set-cookie"]
    assert "a secret" not in str(vars(usersvc.asgi.response_headers))


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
async def test_the_body_of_http_2(
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


async def test_contexts_are_the_requests_own_and_see_what_start_up_set() -> None:
    started: ContextVar[str] = ContextVar("started", default="no")
    visitor: ContextVar[str] = ContextVar("visitor", default="nobody")
    outside: ContextVar[str] = ContextVar("outside", default="nothing")
    received: list[str] = []

    async def start(_: web.Application) -> None:
        started.set("yes")

    async def handler(request: web.Request) -> web.Response:
        before = visitor.get()
        visitor.set("somebody")
        await asyncio.sleep(0)
        await request.read()
        return web.Response(text=f"{started.get()} {before} {visitor.get()} {outside.get()}")

    class Listening(FakeServer):
        async def receive(self) -> Any:
            received.append(visitor.get())
            return await super().receive()

    app = web.Application()
    app.on_startup.append(start)
    app.router.add_post("/", handler)
    asgi = AiohttpASGI(app)
    outside.set("a middleware")
    for _ in range(2):
        server = await Listening(body=b"x").serve(asgi)
        assert server.body == b"yes nobody somebody a middleware"
    assert visitor.get() == "nobody"
    assert set(received) == {"nobody"}, "a server must not be called in a handler's context"


async def test_a_body_is_not_received_before_it_is_read() -> None:
    go = asyncio.Event()
    waiting = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        waiting.set()
        await go.wait()
        return web.Response(body=await request.read())

    server = FakeServer(body=b"hello")
    task = asyncio.create_task(server.serve(app_of(handler)))
    await waiting.wait()
    assert server.incoming.qsize() == 1
    go.set()
    await task
    assert server.body == b"hello"


async def test_a_watched_body_is_received_up_to_a_limit_and_then_as_it_is_read() -> None:
    piece = b"x" * 2**17
    go = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        await go.wait()
        return web.Response(text=str(len(await request.content.read())))

    server = FakeServer.of_upload()
    for number in range(32):
        server.put(piece, more=number < 31)
    task = asyncio.create_task(server.serve(app_of(handler)))
    size = -1
    while size != server.incoming.qsize():
        size = server.incoming.qsize()
        for _ in range(10):
            await asyncio.sleep(0)
    assert 20 < size < 32
    go.set()
    await task
    assert server.body == b"%d" % (32 * len(piece))


async def test_the_end_of_a_body_can_be_waited_for() -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.content.wait_eof()
        return web.Response(body=request.content.read_nowait())

    assert (await respond(handler, body=b"hello")).body == b"hello"


class Telling(FakeServer):
    """Tells of a disconnection again and again, without waiting, when the response has ended."""

    told = 0

    async def receive(self) -> Any:
        if not (self.complete and self.incoming.empty()):
            return await super().receive()
        self.told += 1
        assert self.told < 100, "nobody stops asking"
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(("reading", "expected"), [(False, web.PayloadAccessError), (True, ConnectionResetError)])
async def test_a_body_cannot_be_read_after_the_end_of_its_response(reading: bool, expected: type[Exception]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        reader: Awaitable[bytes] = request.content.readexactly(200)
        if reading:
            reader = asyncio.ensure_future(reader)
            await asyncio.sleep(0)
        response = await streaming(request)
        await response.write_eof()
        server.put_type("http.disconnect")
        with pytest.raises(expected):
            await reader
        outcomes.append("failed")
        return response

    outcomes: list[str] = []
    server = Telling.of_upload(200)
    if not reading:
        server.put(b"x" * 200)
    await server.serve(app_of(handler))
    assert (outcomes, server.complete) == (["failed"], True)


async def test_a_handler_may_go_on_after_the_end_of_its_response() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        response = await streaming(request)
        await response.write_eof()
        server.put_type("http.disconnect")
        for _ in range(5):
            await asyncio.sleep(0)
        return response

    server = Telling()
    await server.serve(app_of(handler))
    assert (server.told, server.complete) == (0, True)


async def test_two_readers_are_one_too_many() -> None:
    async def handler(request: web.Request) -> web.Response:
        first = asyncio.create_task(request.content.read(1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waiting"):
            await request.content.read(1)
        assert request.transport is not None  # to watch while somebody reads
        server.put(b"hello")
        return web.Response(body=await first + await request.content.read())

    server = FakeServer.of_upload(5)
    await server.serve(app_of(handler))
    assert server.body == b"hello"


async def test_a_reading_that_was_given_up_loses_nothing() -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await request.read()
        server.put(b"hello")
        return web.Response(body=await request.read())

    server = FakeServer.of_upload(5)
    await server.serve(app_of(handler))
    assert server.body == b"hello"


async def test_a_body_read_after_the_response_is_no_longer_there() -> None:
    tasks: list[asyncio.Task[bytes]] = []
    go = asyncio.Event()

    async def read(request: web.Request) -> bytes:
        await go.wait()
        return await request.read()

    async def handler(request: web.Request) -> web.Response:
        tasks.append(asyncio.create_task(read(request)))
        return web.Response()

    await respond(handler, body=b"hello")
    go.set()
    with pytest.raises(web.PayloadAccessError):
        await tasks[0]


@pytest.mark.parametrize("way", ["whole", "streamed", "asked for", "granian"])
async def test_the_rest_of_an_unread_body_is_thrown_away(way: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if way == "asked for":
            await request.content.read(1)
        return (web.StreamResponse if way == "streamed" else web.Response)(status=403)

    server = FakeServer.of_upload(
        headers=[(b"expect", b"100-continue")] if way == "asked for" else [],
        extensions={"http.response.pathsend": {}} if way == "granian" else {},
    )
    server.put(b"one", more=True)
    task = asyncio.create_task(server.serve(app_of(handler)))
    await server.progress.wait()
    # Only under granian does the response end before that.
    assert (server.status, server.complete, task.done()) == (403, way == "granian", False)
    server.put(b"two")
    await task
    assert server.complete


async def test_a_body_that_waits_to_be_asked_for_is_not_waited_for() -> None:
    server = FakeServer.of_upload(5, headers=[(b"expect", b"100-continue")])
    await server.serve(app_of(hello))
    assert (server.status, server.complete) == (200, True)


async def test_header_fields_that_are_added_later_are_not_seen() -> None:
    seen: list[object] = []

    async def handler(request: web.Request) -> web.Response:
        server.scope["headers"].append((b"authorization", b"Bearer trailer"))
        seen.extend([*request.headers, *(name for name, _ in request.clone().raw_headers)])
        return web.Response()

    server = FakeServer(body=b"hello")
    await server.serve(app_of(handler))
    assert seen == ["Host", "Content-Length", b"host", b"content-length"]


async def test_a_client_that_goes_is_not_waited_for() -> None:
    server = FakeServer.of_upload(5)
    server.put_type("http.disconnect")
    await server.serve(app_of(hello))
    assert server.complete


async def test_a_bomb_is_decoded_in_bounded_pieces() -> None:
    async def handler(request: web.Request) -> web.Response:
        sizes = [len(chunk) async for chunk in request.content.iter_any()]
        return web.json_response([max(sizes), sum(sizes)])

    bomb = gzip.compress(b"\0" * 2**24)
    server = FakeServer.of_upload(len(bomb), headers=[(b"content-encoding", b"GZIP")])
    server.put(b"", more=True)
    for start in range(0, len(bomb), 5000):
        server.put(bomb[start : start + 5000], more=True)
    server.put(b"")
    await server.serve(app_of(handler))
    largest, total = map(int, server.body.strip(b"[]").split(b","))
    assert total == 2**24
    assert largest <= 2**20


async def test_a_watched_bomb_is_decoded_as_it_is_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.Response(text=str(sum([len(chunk) async for chunk in request.content.iter_any()])))

    server = FakeServer(body=gzip.compress(b"\0" * 2**22), headers=[(b"content-encoding", b"gzip")])
    assert (await server.serve(app_of(handler))).body == b"%d" % 2**22


def broken_off() -> bytes:
    """Something that begins as gzip, and goes bad after a mebibyte."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(b"\0" * 2**20) + compressor.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 1000


@pytest.mark.parametrize("body", [b"not gzip", broken_off()], ids=["never gzip", "half-way"])
@pytest.mark.parametrize("watched", [False, True])
async def test_a_body_that_cannot_be_decoded_fails_its_reader(body: bytes, watched: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        if watched:
            assert request.transport is not None
        for _ in range(2):
            with pytest.raises(web.RequestPayloadError):
                await request.content.read()
        return web.Response(text="caught")

    assert (await respond(handler, body=body, headers=[(b"content-encoding", b"gzip")])).body == b"caught"


async def test_an_application_may_make_requests_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnRequest(web.Request):
        pass

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=f"{type(request).__name__} {await request.text()}")

    app = web.Application()
    app.router.add_post("/", handler)
    make: Callable[..., web.Request] = app._make_request
    monkeypatch.setattr(app, "_make_request", lambda *parts: make(*parts, OwnRequest), raising=False)
    assert (await FakeServer(body=b"read").serve(AiohttpASGI(app))).body == b"OwnRequest read"


async def test_a_body_in_a_coding_without_its_library_is_passed_on_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    monkeypatch.setattr("aiohttp.http_parser.HAS_BROTLI", False)
    server = await FakeServer(body=b"coded", headers=[(b"content-encoding", b"br")]).serve(app_of(handler))
    assert (server.status, server.body) == (200, b"coded")


# Responses


async def test_a_plain_response_is_two_messages() -> None:
    server = await respond(hello)
    assert server.sent == [
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"5")],
        },
        {"type": "http.response.body", "body": b"hello"},
    ]


@pytest.mark.parametrize("version", ["1.0", "1.1", "2", "3"])
async def test_the_servers_headers_are_left_to_it(version: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        headers = {
            "Date": "x", "Server": "x", "Connection": "close", "Keep-Alive": "x", "Transfer-Encoding": "x",
            "Upgrade": "x", "X-Own": "x", "X-Latin": "\u00e9\t\u2028",
        }  # fmt: skip
        return web.Response(headers=headers, body=b"x")

    server = await respond(handler, http_version=version)
    expected = {b"x-own", b"x-latin", b"content-type", b"content-length"}
    assert set(server.headers) == (expected | {b"connection"} if version < "2" else expected)
    assert server.headers[b"x-latin"] == "\u00e9\t\u2028".encode()


@pytest.mark.parametrize(("name", "value"), [("X-A", "a\r\nSet-Cookie: b=1"), ("X-A\nB", "1"), ("X-A", "\x7f")])
@pytest.mark.parametrize("kind", [web.Response, web.StreamResponse])
async def test_no_header_is_injected(name: str, value: str, kind: type[web.StreamResponse]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return kind(headers={name: value})

    server = await respond(handler)
    assert server.status == 500
    assert server.complete


async def test_a_response_cannot_be_sent_twice() -> None:
    response = web.Response(text="once")

    async def handler(request: web.Request) -> web.Response:
        return response

    app = app_of(handler)
    assert (await FakeServer().serve(app)).body == b"once"
    assert (await FakeServer().serve(app)).status == 500


@pytest.mark.parametrize("length", [2, 10])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_body_of_another_length_than_announced(length: int, method: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"hello", headers={"Content-Length": str(length)})

    server = await respond(handler, method=method)
    if method == "HEAD":
        assert (server.status, server.body, server.headers[b"content-length"]) == (200, b"", b"%d" % length)
    elif length < 5:
        assert (server.status, server.body) == (200, b"he")
    else:
        assert server.status == 500


async def too_short(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 10
    await response.prepare(request)
    await response.write(b"hello")
    return response


async def another(request: web.Request) -> web.Response:
    await streaming(request)
    return web.Response(text="another")


async def half_way(request: web.Request) -> web.Response:
    await web.StreamResponse().prepare(request)
    raise ValueError("half-way")


@pytest.mark.parametrize(
    ("handler", "error"), [(too_short, "lacks 5 bytes"), (another, "another response"), (half_way, "half-way")]
)
async def test_a_response_that_cannot_be_completed_is_broken_off(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], error: str
) -> None:
    server = FakeServer()
    with pytest.raises((RuntimeError, ValueError), match=error):
        await server.serve(app_of(handler))
    assert (server.status, server.complete) == (200, False)


@pytest.mark.parametrize(("status", "body"), [(200, b""), (299, b""), (404, b"hello")])
async def test_a_response_to_connect_has_a_body_when_it_is_an_error(status: int, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="hello", status=status)

    server = await respond(handler, method="CONNECT")
    assert (server.status, server.body, server.complete) == (status, body, True)


async def test_a_write_that_was_given_up_breaks_the_response_off() -> None:
    class Slow(FakeServer):
        slow = asyncio.Event()

        async def send(self, message: Any) -> None:
            if message.get("body") == b"lost":
                await self.slow.wait()
            await super().send(message)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await response.write(b"lost")
        with pytest.raises(ClientConnectionResetError):
            await response.write(b"two")
        return response

    server = Slow()
    with pytest.raises(ConnectionAbortedError):
        await server.serve(app_of(handler))
    assert (server.body, server.complete) == (b"one", False)


async def test_nothing_is_written_after_the_end_of_a_response() -> None:
    class Slow(FakeServer):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0)
            await super().send(message)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        late = asyncio.create_task(response.write(b"late"))
        await response.write_eof(b"two")
        with pytest.raises(RuntimeError, match="after the end"):
            await late
        return response

    server = await Slow().serve(app_of(handler))
    assert (server.body, server.complete) == (b"onetwo", True)


@pytest.mark.parametrize("status", [204, 304])
async def test_a_body_that_must_not_be_is_left_out(status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(b"a body")
        await response.write_eof(b"more of it")
        await response.write_eof(b"and still more")
        return response

    server = await respond(handler)
    assert (server.status, server.body, server.complete) == (status, b"", True)


async def test_the_head_of_a_stream_does_not_wait_for_its_body() -> None:
    go = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await go.wait()
        return response

    server = FakeServer()
    task = asyncio.create_task(server.serve(app_of(handler)))
    await server.progress.wait()
    assert server.status == 200
    go.set()
    await task
    assert server.complete


async def test_nothing_but_a_response_is_one(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> None:
        return None

    assert (await respond(handler)).status == 500
    assert "has returned None, which is no response" in caplog.text


async def test_an_error_after_the_response_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        response = await streaming(request)
        await response.write_eof()
        raise ValueError("too late")

    server = await respond(handler)
    assert (server.body, server.complete) == (b"one", True)
    assert "too late" in caplog.text


async def test_an_error_of_a_body_before_its_first_byte_is_answered() -> None:
    async def handler(request: web.Request) -> web.Response:
        async def body() -> AsyncIterator[bytes]:
            raise ValueError("no body")
            yield b""

        return web.Response(body=body())

    assert (await respond(handler)).status == 500


async def test_a_returned_http_exception_is_deprecated() -> None:
    async def handler(request: web.Request) -> web.HTTPException:
        return web.HTTPNotFound()

    with pytest.warns(DeprecationWarning, match="raise"):
        assert (await respond(handler)).status == 404


async def test_a_debugging_loop_shows_tracebacks_escaped() -> None:
    async def handler(request: web.Request) -> web.Response:
        raise ValueError("<script>")

    asyncio.get_running_loop().set_debug(True)
    app = app_of(handler)
    plain = await FakeServer().serve(app)
    html = await FakeServer(headers=[(b"accept", b"text/html")]).serve(app)
    assert b"ValueError: <script>" in plain.body
    assert b"ValueError: &lt;script&gt;" in html.body


async def test_interim_responses_of_expect_handlers_are_the_servers() -> None:
    async def expecting(request: web.Request) -> None:
        await request.writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await request.writer.drain()

    app = web.Application()
    app.router.add_get("/", hello, expect_handler=expecting)
    server = await FakeServer(headers=[(b"expect", b"patience")]).serve(AiohttpASGI(app))
    assert (server.status, server.body) == (200, b"hello")


async def test_an_upgrade_to_a_websocket_is_refused() -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        assert not response.can_prepare(request)
        await response.prepare(request)
        return response

    headers = [
        (b"upgrade", b"websocket"), (b"connection", b"upgrade"), (b"sec-websocket-version", b"13"),
        (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ]  # fmt: skip
    assert (await respond(handler, headers=headers)).status == 400


async def test_a_middleware_that_prepares_sees_aiohttps_headers() -> None:
    app = web.Application()
    seen: list[str] = []

    async def look(request: web.Request, response: web.StreamResponse) -> None:
        seen.extend(response.headers)
        del response.headers["Server"]

    app.on_response_prepare.append(look)
    app.router.add_get("/", hello)
    server = await FakeServer().serve(AiohttpASGI(app))
    assert {"Content-Length", "Date", "Server"} <= set(seen)
    assert set(server.headers) == {b"content-type", b"content-length"}


async def test_several_tasks_may_write_to_one_response() -> None:
    class Slow(FakeServer):
        async def send(self, message: Any) -> None:
            before = len(self.sent)
            for _ in range(3):
                await asyncio.sleep(0)
            assert len(self.sent) == before, "two messages at once"
            await super().send(message)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0)
        await asyncio.gather(*(response.write(b"%d" % number) for number in range(5)))
        return response

    server = await Slow().serve(app_of(handler))
    assert sorted(server.body) == sorted(b"01234")


async def test_the_loop_runs_while_a_server_takes_everything() -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        heart = asyncio.create_task(beat())
        for _ in range(100):
            await response.write(b"x" * 2**15)
        heart.cancel()
        return response

    await respond(handler)
    assert beats >= 30


async def test_a_request_of_http_2_that_is_gone_at_once_is_not_handled() -> None:
    server = FakeServer(http_version="2")
    server.incoming.get_nowait()
    server.disconnect()
    await server.serve(app_of(hello))
    assert server.sent == []


# Disconnections


async def test_a_reader_learns_of_a_disconnection() -> None:
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            await request.read()
        except ConnectionResetError as error:
            caught.append(error)
            assert request.transport is None
            raise
        raise AssertionError

    server = FakeServer.of_upload(5)
    server.put(b"x", more=True)
    server.disconnect()
    await server.serve(app_of(handler))
    assert str(caught[0]) == "Connection lost"


@pytest.mark.parametrize("broken", [False, True])
async def test_a_writer_learns_of_a_disconnection(broken: bool, caplog: pytest.LogCaptureFixture) -> None:
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 2**14)
                await asyncio.sleep(0)
                server.broken = broken
                if not broken and not server.gone:
                    server.disconnect()
        except ClientConnectionResetError as error:
            caught.append(error)
            raise

    server = FakeServer()
    await server.serve(app_of(handler))
    assert len(caught) == 1
    assert caplog.text == "", "a client that goes is no error"


async def test_a_flush_that_fails_is_learned_of_by_the_next_write() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(ClientConnectionResetError):
            await response.write(b"x")
        return response

    server = FakeServer()
    server.broken = True
    await server.serve(app_of(handler))
    assert server.sent == []


async def test_a_plain_response_to_nobody_is_no_error() -> None:
    server = FakeServer()
    server.broken = True
    await server.serve(app_of(hello))
    assert server.sent == []


async def test_a_receive_that_fails_is_a_disconnection() -> None:
    class Failing(FakeServer):
        error: Exception = OSError("gone")

        async def receive(self) -> Any:
            raise self.error

    outcomes: list[str] = []

    async def reading(request: web.Request) -> web.Response:
        with pytest.raises(ConnectionResetError):
            await request.read()
        outcomes.append("reading")
        return web.Response()

    async def watching(request: web.Request) -> web.Response:
        await until_gone(request)
        outcomes.append("watching")
        return web.Response()

    async def both(request: web.Request) -> web.Response:
        assert request.transport is not None
        return await reading(request)

    await Failing(body=b"x").serve(app_of(reading))
    await Failing().serve(app_of(watching))
    failing = Failing(method="POST", headers=[(b"content-length", b"5")])
    failing.error = RuntimeError("a middleware has failed")
    await failing.serve(app_of(both))
    assert outcomes == ["reading", "watching", "reading"]


async def test_an_error_of_a_handler_whose_client_has_gone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        await until_gone(request)
        raise ValueError("unrelated")

    server = FakeServer()
    server.disconnect()
    await server.serve(app_of(handler))
    assert "unrelated" in caplog.text
    assert server.sent == []


async def test_a_handler_is_not_cancelled_by_default() -> None:
    done: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        await until_gone(request)
        await asyncio.sleep(0)
        done.append("to the end")
        return web.Response()

    server = FakeServer()
    server.disconnect()
    await server.serve(app_of(handler))
    assert done == ["to the end"]


async def test_a_handler_is_cancelled_if_so_desired() -> None:
    outcomes: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            server.disconnect()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            outcomes.append("cancelled")
            raise
        raise AssertionError

    server = FakeServer()
    await server.serve(app_of(handler, handler_cancellation=True))
    assert (outcomes, uncancelled()) == (["cancelled"], True)
    assert (await FakeServer().serve(app_of(hello, handler_cancellation=True))).body == b"hello"


async def test_a_handler_that_is_cancelled_while_it_writes_is_no_error() -> None:
    class Full(FakeServer):
        async def send(self, message: Any) -> None:
            if message.get("body") == b"two":
                server.disconnect()
                await asyncio.Event().wait()
            await super().send(message)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        await response.write(b"two")
        raise AssertionError

    server = Full()
    await server.serve(app_of(handler, handler_cancellation=True))
    assert not server.complete


class TestWhileClientWaits:
    async def test_a_wait_ends_when_the_client_goes_and_that_is_no_error(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        outcomes: list[tuple[bool, object]] = []

        async def handler(request: web.Request) -> web.Response:
            try:
                with cancel_on_disconnect(request):
                    server.disconnect()
                    await asyncio.Event().wait()
            except ConnectionResetError:
                outcomes.append((uncancelled(), request.transport))
                raise
            raise AssertionError

        for cancellation in (False, True):
            server = FakeServer(body=b"{}")
            await server.serve(app_of(handler, handler_cancellation=cancellation))
            assert (uncancelled(), server.sent) == (True, [])
        # With handler_cancellation the whole handler is cancelled, as ever.
        assert outcomes == [(True, None)]
        assert caplog.text == ""

    @pytest.mark.parametrize("others", ["around", "beside"])
    async def test_several_may_wait(self, others: str) -> None:
        outcomes: list[str] = []

        async def wait(request: web.Request, what: Awaitable[object]) -> None:
            try:
                with cancel_on_disconnect(request):
                    await what
            except ConnectionResetError:
                outcomes.append("gone")
                raise

        async def handler(request: web.Request) -> web.Response:
            if others == "around":
                await wait(request, short_then_forever(request))
            else:
                await asyncio.gather(wait(request, short()), wait(request, forever()), wait(request, forever()))
            raise AssertionError

        async def short() -> None:
            await asyncio.sleep(0)

        async def forever() -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            server.disconnect()
            await asyncio.Event().wait()

        async def short_then_forever(request: web.Request) -> None:
            await wait(request, short())
            await forever()

        server = FakeServer()
        await server.serve(app_of(handler))
        assert (uncancelled(), server.sent) == (True, [])
        assert outcomes == ["gone"] * (1 if others == "around" else 2)

    async def test_outside_of_it_a_handler_goes_on(self) -> None:
        done: list[str] = []

        async def handler(request: web.Request) -> web.Response:
            with cancel_on_disconnect(request):
                await asyncio.sleep(0)
            server.disconnect()
            await until_gone(request)
            done.append("to the end")
            return web.Response()

        server = FakeServer()
        await server.serve(app_of(handler))
        assert done == ["to the end"]

    async def test_nothing_is_begun_for_a_client_that_has_gone_already(self) -> None:
        begun: list[str] = []

        async def handler(request: web.Request) -> web.Response:
            server.disconnect()
            await until_gone(request)
            with cancel_on_disconnect(request):
                begun.append("in vain")
            return web.Response()

        server = FakeServer()
        await server.serve(app_of(handler))
        assert (begun, server.sent) == ([], [])

    async def test_what_fails_within_fails_as_ever(self, caplog: pytest.LogCaptureFixture) -> None:
        async def handler(request: web.Request) -> web.Response:
            with cancel_on_disconnect(request):
                raise KeyError("unrelated")

        assert (await respond(handler)).status == 500
        assert "unrelated" in caplog.text

    async def test_only_who_asks_pays_for_a_task_that_watches(self) -> None:
        watched: list[int] = []

        async def handler(request: web.Request) -> web.Response:
            before = len(asyncio.all_tasks())
            if "wait" in request.query:
                with cancel_on_disconnect(request):
                    await asyncio.sleep(0)
            watched.append(len(asyncio.all_tasks()) - before)
            return web.Response()

        app = app_of(handler)
        await FakeServer().serve(app)
        await FakeServer(query_string=b"wait=1").serve(app)
        assert watched == [0, 1]

    async def test_in_a_request_of_another_server_it_does_nothing(self) -> None:
        with cancel_on_disconnect(make_mocked_request("GET", "/")):
            await asyncio.sleep(0)


@pytest.mark.parametrize("client_goes_too", [False, True])
@pytest.mark.parametrize("way", ["plain", "cancel_on_disconnect", "handler_cancellation"])
async def test_the_servers_own_cancellation_goes_through(way: str, client_goes_too: bool) -> None:
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request) if way == "cancel_on_disconnect" else contextlib.nullcontext():
            started.set()
            await asyncio.Event().wait()
        raise AssertionError

    server = FakeServer()
    task = asyncio.create_task(server.serve(app_of(handler, handler_cancellation=way == "handler_cancellation")))
    await started.wait()
    if client_goes_too:
        server.disconnect()
    if client_goes_too and way == "handler_cancellation":
        for _ in range(5):
            if task.cancelling():
                break
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_of_a_request_is_left_for_the_garbage_collector() -> None:
    left: list[weakref.ref[web.Request]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        left.append(weakref.ref(request))
        await request.read()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        assert request.transport is not None
        if "fail" in request.query:
            raise web.HTTPConflict
        response = await streaming(request)
        await asyncio.sleep(0)
        return response

    app = app_of(handler)
    gc.disable()
    try:
        for query in (b"", b"fail=1"):
            body = gzip.compress(b"hello")
            await FakeServer(body=body, headers=[(b"content-encoding", b"gzip")], query_string=query).serve(app)
        for _ in range(3):
            await asyncio.sleep(0)  # for the tasks that were cancelled
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


async def test_a_server_that_goes_on_and_on_is_not_listened_to() -> None:
    class Endless(FakeServer):
        async def receive(self) -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        for _ in range(5):
            await asyncio.sleep(0)
        return web.Response(text="hello")

    assert (await Endless().serve(app_of(handler))).body == b"hello"


async def test_the_transport() -> None:
    async def handler(request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        assert transport is request.transport
        assert request.get_extra_info("peername") == ("192.0.2.1", 4711)
        assert request.get_extra_info("sslcontext") is not None
        assert request.get_extra_info("cipher", "none") == "none"
        assert not transport.is_closing()
        assert request.protocol.connected
        transport.close()
        assert transport.is_closing()
        assert request.transport is None
        return web.Response(text="to nobody")

    server = FakeServer(scheme="https")
    with pytest.raises(ConnectionAbortedError):
        await server.serve(app_of(handler))
    assert server.sent == []


async def test_awaitables_that_are_no_coroutines_will_do() -> None:
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


async def test_old_middlewares_and_uploads_leave_no_file_open() -> None:
    files: list[Any] = []

    @web.middleware
    async def passing(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)

    async def handler(request: web.Request) -> web.Response:
        field = (await request.post())["f"]
        assert isinstance(field, web.FileField)
        files.append(field.file)
        return web.Response(body=field.file.read())

    app = web.Application(middlewares=[passing])
    app.router.add_post("/", handler)
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\ndata\r\n--b--\r\n'
    server = FakeServer(body=body, headers=[(b"content-type", b"multipart/form-data; boundary=b")])
    await server.serve(AiohttpASGI(app))
    assert server.body == b"data"
    assert files[0].closed


@pytest.fixture(autouse=True)
def loud(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)


async def test_a_content_type_is_not_what_a_stranger_of_equal_text_was() -> None:
    class Odd(str):
        __slots__ = ()

        def encode(self, *_: Any) -> bytes:
            return b"text/odd"

    async def handler(request: web.Request) -> web.Response:
        kind = Odd("text/x-known") if request.query_string else "text/x-known"
        return web.Response(body=b"x", headers={"Content-Type": kind})

    asgi = app_of(handler)
    await FakeServer(query_string=b"odd").serve(asgi)
    assert (await FakeServer().serve(asgi)).headers[b"content-type"] == b"text/x-known"


async def test_a_way_to_make_requests_that_was_put_into_aiohttp_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make_request = web.Application._make_request

    def making(*arguments: Any, **more: Any) -> web.Request:
        made.append(arguments[1].path)
        return make_request(*arguments, **more)

    monkeypatch.setattr(web.Application, "_make_request", making)
    assert (await respond(hello, path="/made")).body == b"hello"
    assert made == ["/made"]
