"""Responses, whole and streamed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import ClientConnectionResetError, web
from multidict import CIMultiDict

from tests.asgi.fake_server import FakeServer, app_of, hello, respond, streaming
from usersvc.asgi import AiohttpASGI, Message, heads


async def test_plain_response_is_two_messages() -> None:
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
async def test_headers_of_the_server_are_left_out(version: str) -> None:
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
async def test_control_characters_in_headers_get_500(name: str, value: str, kind: type[web.StreamResponse]) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return kind(headers={name: value})

    server = await respond(handler)
    assert server.status == 500
    assert server.complete


def test_cache_of_headers_is_bounded_learns_forever_and_has_no_cookies() -> None:
    for number in range(2 * heads._CACHED_HEADERS):
        heads.encode_headers(CIMultiDict({"X-Request-ID": str(number), "Set-Cookie": "secret=1"}))
    assert ("X-Request-ID", str(number)) in heads._ENCODED
    assert len(heads._ENCODED) <= heads._CACHED_HEADERS
    assert ("Set-Cookie", "secret=1") not in heads._ENCODED


async def test_response_object_cannot_be_sent_twice() -> None:
    response = web.Response(text="once")

    async def handler(request: web.Request) -> web.Response:
        return response

    app = app_of(handler)
    assert (await FakeServer().serve(app)).body == b"once"
    assert (await FakeServer().serve(app)).status == 500


@pytest.mark.parametrize(("method", "length", "body"), [("GET", 2, b"he"), ("HEAD", 2, b""), ("HEAD", 10, b"")])
async def test_body_is_limited_by_its_content_length(method: str, length: int, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=b"hello", headers={"Content-Length": str(length)})

    server = await respond(handler, method=method)
    assert (server.status, server.headers[b"content-length"], server.body) == (200, b"%d" % length, body)


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


async def failing_body(request: web.Request) -> web.Response:
    async def body() -> AsyncIterator[bytes]:
        raise ValueError("no body")
        yield b""

    return web.Response(body=body())


@pytest.mark.parametrize(
    ("handler", "error"),
    [(too_short, "lacks 5 bytes"), (another, "another response"), (half_way, "half-way"), (failing_body, "no body")],
)
async def test_incomplete_response_is_aborted(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], error: str
) -> None:
    server = FakeServer()
    with pytest.raises((RuntimeError, ValueError), match=error):
        await server.serve(app_of(handler))
    assert (server.status, server.complete) == (200, False)


@pytest.mark.parametrize(("status", "body"), [(200, b""), (299, b""), (404, b"hello")])
async def test_successful_response_to_connect_has_no_body(status: int, body: bytes) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text="hello", status=status)

    server = await respond(handler, method="CONNECT")
    assert (server.status, server.body, server.complete) == (status, body, True)


async def test_cancelled_write_aborts_the_response() -> None:
    async def delay(message: Message) -> None:
        if message.get("body") == b"lost":
            await asyncio.Event().wait()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await response.write(b"lost")
        with pytest.raises(ClientConnectionResetError):
            await response.write(b"two")
        return response

    server = FakeServer()
    server.delay = delay
    with pytest.raises(ConnectionAbortedError):
        await server.serve(app_of(handler))
    assert (server.body, server.complete) == (b"one", False)


async def test_write_after_the_end_fails() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        late = asyncio.create_task(response.write(b"late"))
        await response.write_eof(b"two")
        with pytest.raises(RuntimeError, match="after the end"):
            await late
        return response

    server = FakeServer()
    server.delay = lambda _: asyncio.sleep(0)
    await server.serve(app_of(handler))
    assert (server.body, server.complete) == (b"onetwo", True)


@pytest.mark.parametrize("status", [204, 304])
async def test_body_of_204_and_304_is_left_out(status: int) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        await response.write(b"a body")
        await response.write_eof(b"more of it")
        await response.write_eof(b"and still more")
        return response

    server = await respond(handler)
    assert (server.status, server.body, server.complete) == (status, b"", True)


async def test_other_result_than_a_response_gets_500(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> None:
        return None

    assert (await respond(handler)).status == 500
    assert "has returned None, which is not a response" in caplog.text


async def test_error_after_the_response_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        response = await streaming(request)
        await response.write_eof()
        raise ValueError("too late")

    server = await respond(handler)
    assert (server.body, server.complete) == (b"one", True)
    assert "too late" in caplog.text


async def test_interim_responses_of_expect_handlers_are_not_sent() -> None:
    async def expecting(request: web.Request) -> None:
        await request.writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await request.writer.drain()

    app = web.Application()
    app.router.add_get("/", hello, expect_handler=expecting)
    server = await FakeServer(headers=[(b"expect", b"something")]).serve(AiohttpASGI(app))
    assert (server.status, server.body) == (200, b"hello")


async def test_websocket_upgrade_gets_400() -> None:
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


async def test_prepare_signal_sees_all_headers_of_aiohttp() -> None:
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


async def test_concurrent_writes_are_sent_one_by_one() -> None:
    async def delay(message: Message) -> None:
        before = len(server.sent)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(server.sent) == before, "two messages at once"

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        await asyncio.gather(*(response.write(b"%d" % number) for number in range(5)))
        return response

    server = FakeServer()
    server.delay = delay
    await server.serve(app_of(handler))
    assert sorted(server.body) == sorted(b"one01234")


async def test_event_loop_runs_while_send_does_not_suspend() -> None:
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
