"""What `usersvc.server` repeats of uvicorn (mypy checks the rest), evictions and limits."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from usersvc.server.http_protocol import MAX_HEAD, HardenedProtocol


def test_data_received_has_the_steps_of_uvicorn() -> None:
    source = inspect.getsource(HttpToolsProtocol.data_received)
    # The first is left out on purpose; the others are in HardenedProtocol.data_received.
    steps = ("_unset_keepalive_if_required()", "feed_data(data)", "HttpParserError", "HttpParserUpgrade")
    positions = [source.index(step) for step in steps]
    assert positions == sorted(positions)


# --- which connection is closed for a new one ---


class Observed(HardenedProtocol):
    """Reports when a client stops reading, and when a connection is lost."""

    stalled: asyncio.Event
    lost: asyncio.Event

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


class Server:
    """An ASGI application behind the protocol on a real socket.

    `/work` reads the body and waits for `go`, `/early` responds without reading, `/large` sends without end, and
    `/small` sends 60 kB and closes.
    """

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.go = asyncio.Event()
        Observed.stalled, Observed.lost = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.started.put_nowait(path)
        if path == "/work":
            while (message := await receive())["type"] == "http.request" and message["more_body"]:
                pass
            if message["type"] == "http.disconnect":
                return
            await self.go.wait()
        headers = [] if path == "/large" else [(b"content-length", b"60000" if path == "/small" else b"2")]
        if path == "/small":
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while path == "/large" and not Observed.lost.is_set():
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"x" * 60_000 if path == "/small" else b"ok"})

    @asynccontextmanager
    async def listening(self, connections: int) -> AsyncIterator["Clients"]:
        config = Config(self, limit_concurrency=connections, timeout_keep_alive=60, log_config=None, ws="none")
        config.load()
        state = ServerState()
        listener = socket.create_server(("127.0.0.1", 0))
        # So that little of a response is in the system's buffers.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = await asyncio.get_running_loop().create_server(lambda: Observed(config, state, {}), sock=listener)
        try:
            async with AsyncExitStack() as stack:
                yield Clients(listener.getsockname()[1], stack)
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            self.go.set()
            await asyncio.gather(*state.tasks)


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def status(self) -> int:
        """The status of the next response, and 0 if the connection was closed instead."""
        head = b""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            async with asyncio.timeout(20):
                head = await self.reader.readuntil(b"\r\n\r\n")
                if b"content-length: 2\r\n" in head:
                    await self.reader.readexactly(2)
        return int(head.split()[1]) if head else 0

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


class Clients:
    """Connects to a port, until the end of a test."""

    def __init__(self, port: int, stack: AsyncExitStack) -> None:
        self._port, self._stack = port, stack

    async def sending(self, request: bytes) -> Client:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=client, limit=2048)
        writer.write(request)
        connected = Client(reader, writer)
        self._stack.push_async_callback(connected.close)
        return connected


def post(path: bytes, body: bytes, length: int = 10) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (path, length, body)


COMPLETE, INCOMPLETE = post(b"/work", b"x" * 10), post(b"/work", b"")
EARLY = b"GET /early HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_connection_that_has_waited_longest_for_a_body_is_evicted() -> None:
    server = Server()
    server.go.set()
    async with server.listening(3) as clients:
        waiting = []
        for _ in range(3):
            waiting.append(await clients.sending(INCOMPLETE))
            await server.started.get()
        # Progress does not reset its waiting time.
        waiting[0].writer.write(b"x" * 9)
        assert await (await clients.sending(EARLY)).status() == 200
        assert await waiting[0].status() == 0
        for client in waiting[1:]:
            client.writer.write(b"x" * 10)
            assert await client.status() == 200


@pytest.mark.parametrize("idle_for_long", [True, False])
async def test_idle_connections_are_evicted_before_those_that_wait_for_a_body(
    monkeypatch: pytest.MonkeyPatch, idle_for_long: bool
) -> None:
    monkeypatch.setattr("usersvc.server.http_protocol.EVICTION_GRACE", 0.0 if idle_for_long else 60.0)
    server = Server()
    server.go.set()
    async with server.listening(2) as clients:
        waiting = await clients.sending(INCOMPLETE)
        await server.started.get()
        idle = await clients.sending(EARLY)
        assert await idle.status() == 200
        assert await (await clients.sending(EARLY)).status() == 200
        evicted, kept = (idle, waiting) if idle_for_long else (waiting, idle)
        assert await evicted.status() == 0
        kept.writer.write(b"x" * 10 if kept is waiting else EARLY)
        assert await kept.status() == 200


@pytest.mark.parametrize("behind", [b"", INCOMPLETE], ids=["alone", "with an incomplete one behind it"])
async def test_request_with_a_complete_body_is_not_evicted(behind: bytes) -> None:
    server = Server()
    async with server.listening(2) as clients:
        working = [await clients.sending(COMPLETE + behind) for _ in range(2)]
        for _ in working:
            await server.started.get()
        refused = await asyncio.wait_for((await clients.sending(b"")).reader.read(), 20)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: " in refused
        assert b"/problems/overloaded" in refused
        server.go.set()
        assert [await client.status() for client in working] == [200, 200]


@pytest.mark.parametrize(("grace", "status"), [(0.0, 200), (60.0, 503)])
async def test_client_that_has_not_read_for_long_is_evicted(
    monkeypatch: pytest.MonkeyPatch, grace: float, status: int
) -> None:
    monkeypatch.setattr("usersvc.server.http_protocol.EVICTION_GRACE", grace)
    server = Server()
    async with server.listening(1) as clients:
        await clients.sending(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        await Observed.stalled.wait()
        assert await (await clients.sending(EARLY)).status() == status


async def test_connection_is_closed_after_a_response_to_an_incomplete_body() -> None:
    async with Server().listening(1) as clients:
        client = await clients.sending(post(b"/early", b"x"))
        assert await client.status() == 200
        assert await client.status() == 0


async def test_trailer_limit_does_not_depend_on_the_body() -> None:
    body = b"x" * 1_000_000
    head = b"POST /work HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with Server().listening(1) as clients:
        # The field does not end: it is refused before it is complete.
        client = await clients.sending(head + b"%x\r\n%s\r\n0\r\nX-Long: %s" % (len(body), body, b"x" * 2 * MAX_HEAD))
        assert await client.status() == 431


async def test_closing_does_not_wait_for_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.server.http_protocol.WRITE_TIMEOUT", 0.1)
    async with Server().listening(1) as clients:
        await clients.sending(b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(Observed.lost.wait(), 20)
        assert not Observed.stalled.is_set()
