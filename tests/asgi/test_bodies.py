"""Request bodies: read, unread, compressed, broken."""

import asyncio
import gzip
import zlib
from collections.abc import Awaitable
from typing import Any

import pytest
from aiohttp import web

from tests.asgi.fake_server import FakeServer, RawHeaders, app_of, hello, respond, streaming


async def test_body_is_received_only_when_it_is_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        await asyncio.sleep(0)
        assert server.incoming.qsize() == 1
        return web.Response(body=await request.read())

    server = FakeServer(body=b"hello")
    await server.serve(app_of(handler))
    assert server.body == b"hello"


async def test_watched_body_is_received_up_to_a_limit() -> None:
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


async def test_wait_eof_receives_the_body() -> None:
    async def handler(request: web.Request) -> web.Response:
        await request.content.wait_eof()
        return web.Response(body=request.content.read_nowait())

    assert (await respond(handler, body=b"hello")).body == b"hello"


class Repeating(FakeServer):
    """Repeats the disconnection without waiting when the response has ended."""

    calls = 0

    async def receive(self) -> Any:
        if not (self.complete and self.incoming.empty()):
            return await super().receive()
        self.calls += 1
        assert self.calls < 100, "receive is called without end"
        return {"type": "http.disconnect"}


@pytest.mark.parametrize(("reading", "expected"), [(False, web.PayloadAccessError), (True, ConnectionResetError)])
async def test_reading_fails_after_the_response(reading: bool, expected: type[Exception]) -> None:
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
    server = Repeating.of_upload(200)
    if not reading:
        server.put(b"x" * 200)
    await server.serve(app_of(handler))
    assert (outcomes, server.complete) == (["failed"], True)


async def test_nothing_is_received_after_the_response() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        response = await streaming(request)
        await response.write_eof()
        server.put_type("http.disconnect")
        for _ in range(5):
            await asyncio.sleep(0)
        return response

    server = Repeating()
    await server.serve(app_of(handler))
    assert (server.calls, server.complete) == (0, True)


async def test_interrupted_and_concurrent_reads_lose_nothing() -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await request.read()
        first = asyncio.create_task(request.content.read(1))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waiting"):
            await request.content.read(1)
        assert request.transport is not None  # starts to watch while a task reads
        server.put(b"hello")
        return web.Response(body=await first + await request.content.read())

    server = FakeServer.of_upload(5)
    await server.serve(app_of(handler))
    assert server.body == b"hello"


async def test_task_that_outlives_the_handler_cannot_read() -> None:
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


@pytest.mark.parametrize("way", ["whole", "streamed", "continued", "granian"])
async def test_rest_of_an_unread_body_is_dropped(way: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if way == "continued":
            await request.content.read(1)
        return (web.StreamResponse if way == "streamed" else web.Response)(status=403)

    server = FakeServer.of_upload(
        headers=[(b"expect", b"100-continue")] if way == "continued" else [],
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


@pytest.mark.parametrize(
    ("headers", "incoming"), [([(b"expect", b"100-continue")], []), ([], ["http.disconnect"])], ids=["expects", "gone"]
)
async def test_response_does_not_wait_for_a_body_that_will_not_come(headers: RawHeaders, incoming: list[str]) -> None:
    server = FakeServer.of_upload(5, headers=headers)
    for kind in incoming:
        server.put_type(kind)
    await server.serve(app_of(hello))
    assert (server.status, server.complete) == (200, True)


async def test_decompression_bomb_is_decoded_in_bounded_pieces() -> None:
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


async def test_watched_decompression_bomb_is_decoded_as_it_is_read() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        return web.Response(text=str(sum([len(chunk) async for chunk in request.content.iter_any()])))

    server = FakeServer(body=gzip.compress(b"\0" * 2**22), headers=[(b"content-encoding", b"gzip")])
    assert (await server.serve(app_of(handler))).body == b"%d" % 2**22


def truncated() -> bytes:
    """Data that is valid gzip for a mebibyte only."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(b"\0" * 2**20) + compressor.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 1000


@pytest.mark.parametrize("body", [b"not gzip", truncated()], ids=["never gzip", "half-way"])
@pytest.mark.parametrize("watched", [False, True])
async def test_reading_an_undecodable_body_fails(body: bytes, watched: bool) -> None:
    async def handler(request: web.Request) -> web.Response:
        if watched:
            assert request.transport is not None
        for _ in range(2):
            with pytest.raises(web.RequestPayloadError):
                await request.content.read()
        return web.Response(text="caught")

    assert (await respond(handler, body=body, headers=[(b"content-encoding", b"gzip")])).body == b"caught"


async def test_body_is_not_decoded_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    monkeypatch.setattr("usersvc.asgi.receiver.CODINGS", {"gzip"})
    assert (await respond(handler, body=b"coded", headers=[(b"content-encoding", b"br")])).body == b"coded"


async def test_uploaded_files_are_closed() -> None:
    files: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        field = (await request.post())["f"]
        assert isinstance(field, web.FileField)
        files.append(field.file)
        return web.Response(body=field.file.read())

    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\ndata\r\n--b--\r\n'
    server = FakeServer(body=body, headers=[(b"content-type", b"multipart/form-data; boundary=b")])
    await server.serve(app_of(handler))
    assert server.body == b"data"
    assert files[0].closed


async def test_server_that_repeats_the_last_message_is_not_asked_again() -> None:
    class Endless(FakeServer):
        async def receive(self) -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        for _ in range(5):
            await asyncio.sleep(0)
        return web.Response(text="hello")

    assert (await Endless().serve(app_of(handler))).body == b"hello"
