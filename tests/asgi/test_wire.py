"""What HTTP clients do not send or show: odd requests, disconnections, back-pressure, handshakes."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable

import pytest

from tests.asgi.serving import KINDS, REFERENCE, Kind

HTTP_1 = [REFERENCE, *(kind for kind in KINDS if kind.arguments and not kind.http2)]
PortOf = Callable[[Kind], int]
each_server_of_asgi = pytest.mark.parametrize("kind", HTTP_1[1:], ids=lambda kind: kind.name)
each_server = pytest.mark.parametrize("kind", HTTP_1, ids=lambda kind: kind.name)


class Connection:
    """A connection on which any bytes can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, text: bytes) -> None:
        self.writer.write(text)
        await self.writer.drain()

    async def response(self) -> tuple[int, bytes]:
        async with asyncio.timeout(20):
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"\r\ncontent-length: (\d+)", head)
            body = await self.reader.readexactly(int(length[1])) if length else b""
            return int(head.split()[1]), body


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, line: str) -> tuple[int, bytes]:
    async with connected(port) as connection:
        await connection.send(f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        return await connection.response()


ODD = [
    b"OPTIONS * HTTP/1.1", b"GET http://example.org/facts?a=1 HTTP/1.1", b"GET //facts HTTP/1.1",
    b"GET ///a//b HTTP/1.1", b"GET /%zz%%%2 HTTP/1.1", b"GET /\xff\xfe HTTP/1.1", b"GET /facts#fragment HTTP/1.1",
    b"GET /facts?? HTTP/1.1", b"GET ? HTTP/1.1", b"GET facts HTTP/1.1", b"CONNECT example.org:443 HTTP/1.1",
    b"GET http:///facts HTTP/1.1", b"GET http://[::1/facts HTTP/1.1", b"GET /" + b"x" * 7000 + b" HTTP/1.1",
    b"GET /facts HTTP/1.0", b"GET /..%5c..%5c HTTP/1.1", b"GET /a;b=c,d HTTP/1.1", b"GET /%00 HTTP/1.1",
]  # fmt: skip


@each_server
async def test_odd_targets_are_handled(kind: Kind, port_of: PortOf) -> None:
    port = port_of(kind)
    statuses: dict[bytes, int | None] = {}
    for line in ODD:
        async with connected(port) as connection:
            await connection.send(line + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            response = await asyncio.wait_for(connection.reader.read(), 20)
            statuses[line[:40]] = int(response.split()[1]) if response else None
    # aiohttp's own server, of some versions, just closes the connection.
    assert set(statuses.values()) - ({None} if kind is REFERENCE else set()) <= {200, 400, 404}, statuses
    assert statuses[b"GET /facts HTTP/1.0"] == 200
    assert statuses[b"GET /%zz%%%2 HTTP/1.1"] == 404
    assert (await ask(port, "GET /facts"))[0] == 200


TRAILED = "POST /read_then_facts HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nX-Head: 1\r\n"
CHUNKS = b"1\r\nx\r\n0\r\nX-Trailer: 2\r\n\r\n"


@each_server
@pytest.mark.parametrize("later", [True, False])
async def test_trailer_fields_are_not_headers(kind: Kind, port_of: PortOf, later: bool) -> None:
    async with connected(port_of(kind)) as connection:
        if later:
            await connection.send(f"{TRAILED}Expect: 100-continue\r\n\r\n".encode())
            assert (await connection.response())[0] == 100  # the scope has been passed
            await connection.send(CHUNKS)
        else:
            await connection.send(f"{TRAILED}\r\n".encode() + CHUNKS)
        status, body = await connection.response()
    known_exception = kind.module == "httptools" and not later
    assert status == 200
    assert [name for name, _ in json.loads(body)["headers"]] == ["x-head", *["x-trailer"] * known_exception]


async def outcome(port: int, name: str) -> str:
    return (await ask(port, f"GET /noted/{name}"))[1].decode()


@each_server_of_asgi
async def test_cancel_on_disconnect_ends_a_wait(kind: Kind, port_of: PortOf) -> None:
    port = port_of(kind)
    async with connected(port) as connection:
        await connection.send(
            b"POST /wait_for_client?name=waiting HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
        )
        await outcome(port, "waiting%20waits")
    assert await outcome(port, "waiting") == "ConnectionResetError"
    assert (await ask(port, "GET /facts"))[0] == 200


@each_server
@pytest.mark.parametrize(
    ("handler", "headers", "received", "sent"),
    [
        ("endless", b"", 100_000, b""),
        ("waiting_reader", b"Expect: 100-continue\r\nContent-Length: 1000\r\n", len("HTTP/1.1 100"), b"x" * 100),
    ],
    ids=["writing", "reading"],
)
async def test_io_fails_after_a_disconnection(
    kind: Kind, port_of: PortOf, *, handler: str, headers: bytes, received: int, sent: bytes
) -> None:
    port = port_of(kind)
    async with connected(port) as connection:
        await connection.send(
            b"POST /%b?name=%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (*[handler.encode()] * 2, headers)
        )
        await connection.reader.readexactly(received)
        await connection.send(sent)
    assert await outcome(port, handler) == "ConnectionResetError"


@each_server
async def test_disconnection_at_the_end_of_a_response_does_not_affect_others(kind: Kind, port_of: PortOf) -> None:
    port = port_of(kind)
    for _ in range(3):
        async with connected(port) as connection:
            await connection.send(b"GET /at_once HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await connection.reader.readexactly(1000)
        assert (await ask(port, "GET /facts"))[0] == 200


@each_server
async def test_handler_that_does_not_read_makes_the_client_stop(kind: Kind, port_of: PortOf) -> None:
    port = port_of(kind)
    size = 64 * 2**20
    piece = b"x" * 2**16
    sent = 0
    async with connected(port) as connection:
        connection.writer.transport.set_write_buffer_limits(0)
        connection.writer.write(b"POST /hold HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        with contextlib.suppress(TimeoutError):
            while sent < size:
                connection.writer.write(piece)
                sent += len(piece)
                await asyncio.wait_for(connection.writer.drain(), 0.2)
        assert sent < size, "the server has received all that the handler has not read"
        await ask(port, "POST /release")
        while sent < size:
            connection.writer.write(piece)
            sent += len(piece)
            await connection.writer.drain()
        assert await connection.response() == (200, b'{"total": %d}' % size)


@each_server_of_asgi
async def test_websocket_handshake_is_refused(kind: Kind, port_of: PortOf) -> None:
    async with connected(port_of(kind)) as connection:
        await connection.send(
            b"GET /facts HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        status, _ = await connection.response()
    # A server without WebSockets serves the handshake as any other request.
    assert status in {200, 403}
