"""The request side of an exchange: body and disconnection, from ASGI's `receive`."""

import asyncio
import ssl
from collections.abc import Callable
from contextvars import copy_context
from typing import Final

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11
from multidict import CIMultiDict
from propcache.api import cached_property
from yarl import URL

from usersvc.asgi import heads
from usersvc.asgi.contexts import run_in_context
from usersvc.asgi.heads import DISCONNECT, Message, Receive, Scope, Send
from usersvc.asgi.private_parts import CODINGS, Body, Transport, lazy

_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # never used: any context means "https" to aiohttp


class Receiver:
    """Stands in for aiohttp's protocol.

    The coroutine that reads the body calls `receive`, so a handler that does not read makes the client stop sending.
    Only if a disconnection matters to the handler (`watch`) does a task call it.
    """

    # `request.multipart()` reads these; the values are those of aiohttp's own server.
    max_field_size = 8190
    max_headers = 128

    body: Body | None = None
    version = HttpVersion11
    on_disconnect: tuple[Callable[[], None], ...] = ()
    has_body = False  # the request may have a body
    unread = False  # the body may be read without a stream: it is not decoded, and nothing has used it so far
    expected = False  # the client sent `Expect` and waits for `100 Continue`
    ended = False  # the whole request has been received
    watched = False  # a task receives, not the reader
    connected = True
    aborted = False  # the handler has closed the connection or abandoned a write
    ending = False  # the last of the response is being sent: a disconnection no longer matters
    closed = False  # the exchange has ended, and its body with it
    _receiving = False
    _paused = False  # the body's buffer is full
    _resumed: asyncio.Event | None = None
    _watcher: "asyncio.Task[None] | None" = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope: Scope = scope
        self.raw_headers = tuple(scope["headers"])  # a copy: a server may append trailer fields
        self.outer = copy_context()
        self._receive = receive
        self._send = send

    ssl_context = lazy(lambda self: _TLS if self.scope.get("scheme") == "https" else None)
    peername = lazy(lambda self: self.scope.get("client"))
    sockname = lazy(lambda self: heads.sockname_of(self.scope))
    target: "cached_property[tuple[str, URL]]" = lazy(lambda self: heads.target_of(self.scope))
    headers: "cached_property[CIMultiDict[str]]" = lazy(lambda self: heads.headers_of(self.raw_headers, self.version))

    async def peek(self) -> Message | None:
        """Receive the first message of an HTTP/2 request if only that tells whether the request has a body."""
        usually_with_body = self.scope["method"] in {"POST", "PUT", "PATCH"}
        if usually_with_body or b"content-length" in dict(self.raw_headers):
            return None
        message = await self._receive()
        return DISCONNECT if message["type"] == "http.disconnect" else message

    def opened_body(self) -> Body:
        if self.body is None:
            self.unread = False
            coding = self.headers.get(hdrs.CONTENT_ENCODING, "").lower()
            self.body = body = Body(self, coding if coding in CODINGS else None)
            if self.closed:
                body.set_exception(web.PayloadAccessError())
            elif self.ended:
                body.feed_eof()
            elif not self.connected:
                body.set_exception(ConnectionResetError("Connection lost"))
        return self.body

    @property
    def transport(self) -> Transport | None:
        if not self.connected:
            return None
        self.watch()  # handlers use the transport to find out whether the client is still connected
        return Transport(self)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self, resume_parser: bool = True) -> None:
        self._paused = False
        if self._resumed is not None:
            self._resumed.set()

    async def next_message(self, func_name: str) -> Message:
        if self._receiving:
            raise RuntimeError(f"{func_name}() called while another coroutine is already waiting for incoming data")
        self._receiving = True
        try:
            return await run_in_context(self.outer, self._receive())
        except OSError:
            return DISCONNECT
        finally:
            self._receiving = False
            if self.watched:  # since this began to wait
                self._start_watcher()

    def take(self, message: Message) -> None:
        self.expected = False  # servers send `100 Continue` when they are asked for the body
        if message["type"] == "http.disconnect":
            self.lose()
        elif not self.ended:
            if self.has_body:
                self.opened_body().feed(message)
            self.ended = not message.get("more_body", False)

    def watch(self) -> None:
        """Notice a disconnection from now on, even if nothing reads or writes."""
        if not (self.watched or not self.connected or self.ending):
            self.watched = True
            self.unread = False
            if not self._receiving:
                self._start_watcher()

    def _start_watcher(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), context=self.outer.copy())

    async def _watch(self) -> None:
        self._resumed = asyncio.Event()
        while self.connected:
            if self._paused:
                self._resumed.clear()
                await self._resumed.wait()
            elif self.body is None or not self.body.feed_held():
                ended = self.ended
                try:
                    message = await self._receive()
                except OSError:
                    message = DISCONNECT
                except Exception:
                    self.lose()
                    raise  # the event loop reports it
                self.take(message)
                if ended or message["type"] == "http.disconnect":
                    return  # some servers repeat the last message without waiting

    def lose(self) -> None:
        """Treat the client as disconnected, unless the last of the response is being sent."""
        if self.body is not None and not (self.ending and self.ended):
            self.body.set_exception(ConnectionResetError("Connection lost"))
        if not self.connected or self.ending:
            return
        self.connected = False
        for callback in self.on_disconnect:
            callback()

    def abort(self) -> None:
        """Make the server close the connection."""
        self.aborted = True
        self.lose()

    def close(self) -> None:
        """Stop receiving, and let no reader wait."""
        self.closed = True
        self.unread = False
        # Cut reference cycles, so that nothing is left to the garbage collector.
        if self.watched:
            self.watched = False
            if self._watcher is not None:
                self._watcher.cancel()
            self._watcher = None
        if self.body is not None:
            self.body.set_exception(web.PayloadAccessError())
            self.body.decoder = None
            self.body = None
