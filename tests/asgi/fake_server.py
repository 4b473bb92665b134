"""A fake ASGI server: the application receives what a test puts in, and what it sends is kept."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Self

from aiohttp import web

from usersvc.asgi import AiohttpASGI, Message, Scope

RawHeaders = Sequence[tuple[bytes, bytes]]


class FakeServer:
    """One scope, as an ASGI server would serve it.

    Args:
        more: what differs in the scope from a plain `GET /` of HTTP/1.1.
    """

    delay: Callable[[Message], Awaitable[object]] | None = None
    """Awaited before a message is sent."""

    def __init__(self, *, body: bytes | None = None, headers: RawHeaders = (), **more: Any) -> None:
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET" if body is None else "POST",
            "scheme": "http",
            "path": "/",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"example.org"), *headers],
            "client": ("192.0.2.1", 4711),
            "server": ("192.0.2.2", 80),
            "extensions": {},
            **more,
        }
        if self.scope["type"] == "http":
            self.scope.setdefault("raw_path", self.scope["path"].encode())
        if body is not None:
            self.scope["headers"].append((b"content-length", b"%d" % len(body)))
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.gone = False
        self.broken = False  # `send` raises, as it does from version 2.4 of the specification on
        self.progress = asyncio.Event()
        if body is not None:
            self.put(body)
        elif self.scope["type"] == "http":
            self.put(b"")

    @classmethod
    def of_upload(cls, length: int | None = None, *, headers: RawHeaders = (), **more: Any) -> Self:
        """A POST whose body is put in by the test: of this length, or chunked."""
        framing = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        server = cls(method="POST", headers=[framing, *headers], **more)
        server.incoming.get_nowait()
        return server

    def put(self, body: bytes, *, more: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def put_type(self, kind: str) -> None:
        self.incoming.put_nowait({"type": kind})

    def disconnect(self) -> None:
        self.gone = True
        self.put_type("http.disconnect")

    async def receive(self) -> Message:
        return await self.incoming.get()

    async def send(self, message: Message) -> None:
        if self.delay is not None:
            await self.delay(message)
        if self.broken:
            raise OSError("the client has gone")
        if not self.gone:
            self.sent.append(message)
        self.progress.set()

    async def serve(self, app: AiohttpASGI) -> Self:
        async with asyncio.timeout(20):
            await app(self.scope, self.receive, self.send)
        return self

    @property
    def types(self) -> list[str]:
        return [message["type"] for message in self.sent]

    @property
    def status(self) -> int:
        status = self.sent[0]["status"]
        assert isinstance(status, int)
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def complete(self) -> bool:
        return len(self.sent) > 1 and not self.sent[-1].get("more_body", False)


def app_of(handler: Callable[[web.Request], Awaitable[Any]]) -> AiohttpASGI:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    return AiohttpASGI(app)


async def respond(handler: Callable[[web.Request], Awaitable[Any]], **scope: Any) -> FakeServer:
    """Serve a request with a handler."""
    return await FakeServer(**scope).serve(app_of(handler))


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def streaming(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    return response


async def until_gone(request: web.Request) -> None:
    """Wait until the client has disconnected, by the idiom of aiohttp's handlers."""
    while request.transport is not None:  # noqa: ASYNC110  # the idiom that is tested
        await asyncio.sleep(0)
