"""One request and its response."""

import asyncio
import ssl
import types
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import quote

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.helpers import must_be_empty_body
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy
from propcache.api import cached_property
from yarl import URL

from usersvc.asgi.contexts import as_coroutine, resumed, within
from usersvc.asgi.private_parts import ASGI_SCOPE, Body, Request, Transport
from usersvc.asgi.response_headers import CLOSE, TEXT, encode_headers
from usersvc.asgi.scopes import (
    DISCONNECT,
    HTTP_1,
    ORIGIN_FORM,
    REQUEST_NAMES,
    TARGET,
    VERSIONS,
    Message,
    Multiplexed,
    RawHeaders,
    Receive,
    Scope,
    Send,
    learned,
    routed,
    sockname,
)

LINGER: Final = 2  # seconds for which the rest of an unread body is thrown away
_YIELD: Final = 2**16  # bytes; a server's `send` may never suspend, and the loop must run now and then
_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # never used: any context means "https" to aiohttp
_CODINGS: Final = {coding: coding for coding in ("gzip", "deflate", "br", "zstd")}
_USUALLY_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_new: Final = object.__new__


class Exchange(AbstractStreamWriter):
    """One request and its response: aiohttp's protocol and writer, over ASGI's `receive` and `send`."""

    # What `request.multipart()` asks of its protocol, with the values of aiohttp's own server: bytes, and lines.
    max_line_size = 8190
    max_field_size = 8190
    max_headers = 128

    length: int | None = None  # bytes of the response that are still to come, when their number has been announced
    body: Body | None = None
    task: "asyncio.Task[None] | None" = None  # to be cancelled when the client goes
    on_lost: tuple[Callable[[], None], ...] = ()  # called when the client goes
    watched = False  # a task, not the reader, takes what the server has to tell
    disconnected = False
    cancelled = False  # the task has been, because of that
    aborted = False  # the handler has closed the connection, or given up writing
    finished = False  # all of the response has been handed to the server
    ending = False  # the last of the response is being handed over: what the server tells now is no disconnection
    ended = False  # all of the request has come
    taken = 0  # bytes of the request's body, when it was read at once
    has_body = False  # the request may have one
    fresh = False  # nobody has asked for the body yet, nor for a look at the connection, and it needs no decoding
    closed = False  # nobody may read any more
    version = HttpVersion11
    expected = False  # the client waits to be told to go on
    _pulling = False  # somebody waits in `receive`
    _paused = False  # the body is full
    _attended = False  # `_attend` has been called, or will be
    committed = False  # for all that the application knows, the head of the response has gone
    _bodiless = False  # the response must not have a body
    _head: Message | None = None  # the start of the response, while it is held back
    _compressor: ZLibCompressor | None = None
    _transport: Transport | None = None
    _resumed: asyncio.Event | None = None
    _watcher: "asyncio.Task[None] | None" = None
    _flusher: "asyncio.Task[None] | None" = None

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.raw_headers = tuple(scope["headers"])  # a copy: a server may append trailer fields
        self.outer = copy_context()
        self._receive = receive
        self._send = send

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        return _TLS if self.scope.get("scheme") == "https" else None

    @property
    def peername(self) -> Any:
        return self.scope.get("client")

    @property
    def sockname(self) -> Any:
        server = self.scope.get("server")
        return server if server is None or (server[1] and ":" not in server[0]) else sockname(*server)

    async def peek(self) -> Message | None:
        """Wait for the first message of a request when only that tells whether there is a body."""
        scope = self.scope
        if scope["method"] in _USUALLY_WITH_BODY or any(name == b"content-length" for name, _ in self.raw_headers):
            return None
        message = await self._receive()
        return DISCONNECT if message["type"] == "http.disconnect" else message

    async def refuse(self, error: Exception) -> None:
        """Answer a request that cannot be handed to the application."""
        text = str(error).encode("utf-8", "replace")
        headers = [TEXT, (b"content-length", b"%d" % len(text))]
        self.close_after(headers)
        await self._send({"type": "http.response.start", "status": HTTPStatus.BAD_REQUEST, "headers": headers})
        await self._send({"type": "http.response.body", "body": text})

    def request(self, kind: type[Request], first: Message | None) -> web.Request:
        """Make aiohttp's request of the ASGI scope.

        Raises:
            ValueError: the request target makes no sense.
        """
        scope = self.scope
        names = dict(self.raw_headers)
        if scope["http_version"] != "1.1":
            self.version = VERSIONS.get(scope["http_version"], HttpVersion11)
        if first is not None:
            has_body = bool(first.get("body") or first.get("more_body"))
        elif (length := names.get(b"content-length")) is not None:
            has_body = length != b"0"
        else:
            has_body = b"transfer-encoding" in names or type(self.version) is Multiplexed
        if b"expect" in names:
            self.expected = True
        if has_body:
            self.has_body = True
            if first is not None:
                self.take(first)
            else:
                self.fresh = b"content-encoding" not in names
        path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
        if kind.own or path[:1] not in ORIGIN_FORM:  # the rare target that may tell scheme and host
            payload = self.opened_body() if has_body else EMPTY_PAYLOAD
            special = kind.ordinary(self.message(), payload, self, self, asyncio.current_task())
            special[ASGI_SCOPE] = cast("dict[str, Any]", scope)
            return special
        request = _new(kind)
        request.begin(self)
        return request

    @cached_property
    def headers(self) -> "CIMultiDict[str]":
        names = REQUEST_NAMES
        try:
            headers = CIMultiDict([(names[name], value.decode()) for name, value in self.raw_headers])
        except UnicodeDecodeError:  # what is not UTF-8 keeps its octets, as in aiohttp
            headers = CIMultiDict(
                [(names[name], value.decode("utf-8", "surrogateescape")) for name, value in self.raw_headers]
            )
        if self.version > HttpVersion11 and len(cookies := headers.getall(hdrs.COOKIE, ())) > 1:
            headers[hdrs.COOKIE] = "; ".join(cookies)  # RFC 9113, section 8.2.3
        return headers

    @cached_property
    def target(self) -> tuple[str, URL]:
        """The request target, and the same as a URL.

        Raises:
            ValueError: it is of no form that a request may have.
        """
        scope = self.scope
        raw: bytes | None = scope.get("raw_path")
        if raw is None:
            raw = quote(scope["path"]).encode()
        elif b"?" in raw:
            raw = raw.partition(b"?")[0]  # some servers leave the query there
        if query := scope["query_string"]:
            raw = b"%b?%b" % (raw, query)
        return (learned if len(raw) <= TARGET else routed)(raw, scope.get("root_path", ""))

    def message(self) -> RawRequestMessage:
        """What aiohttp's parser would make of the head of the request.

        Raises:
            ValueError: the request target makes no sense.
        """
        headers = self.headers
        target, url = self.target
        should_close = self.version is HttpVersion10
        if hdrs.CONNECTION in headers:
            connection = headers[hdrs.CONNECTION].lower()
            should_close = "keep-alive" not in connection if should_close else "close" in connection
        return RawRequestMessage(
            self.scope["method"],
            target,
            self.version,
            CIMultiDictProxy(headers),
            self.raw_headers,
            should_close,
            self.opened_body().coding if self.has_body else None,
            False,  # an upgrade is the server's
            hdrs.TRANSFER_ENCODING in headers,
            url,
        )

    def opened_body(self) -> Body:
        """Make the body, when it is first asked for."""
        if self.body is None:
            self.fresh = False
            coding = _CODINGS.get(self.headers.get(hdrs.CONTENT_ENCODING, "").lower())
            try:
                body = Body(self, coding)
            except ContentEncodingError:  # the library for it is missing
                body = Body(self, None)
            self.body = body
            if self.closed:
                body.set_exception(web.PayloadAccessError())
            elif self.ended:
                body.total_bytes = self.taken
                body.feed_eof()
            elif self.disconnected:
                body.set_exception(ConnectionResetError("Connection lost"))
        return self.body

    # As a protocol

    @property
    def connected(self) -> bool:
        return not self.disconnected

    @property
    def transport(self) -> Transport | None:
        if self.disconnected:
            return None
        self.watch()  # whoever asks may want to know whether the client is still there
        if self._transport is None:
            self._transport = Transport(self)
        return self._transport

    def pause_reading(self) -> None:
        """Stop, for the body is full."""
        self._paused = True

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on, for the body has been read from."""
        self._paused = False
        if self._resumed is not None:
            self._resumed.set()

    async def next_message(self, func_name: str) -> Message:
        """Receive, in the server's context.

        Raises:
            RuntimeError: somebody else is reading.
        """
        if self._pulling:
            raise RuntimeError(f"{func_name}() called while another coroutine is already waiting for incoming data")
        self._pulling = True
        try:
            # As in `_within`, but without its coroutine, for the small bodies that most are.
            awaitable = self._receive()
            is_coroutine = isinstance(awaitable, types.CoroutineType)
            coroutine = cast("Coroutine[Any, Any, Message]", awaitable if is_coroutine else as_coroutine(awaitable))
            try:
                future = self.outer.run(coroutine.send, None)
            except StopIteration as done:
                message: Message = done.value
                return message
            return await resumed(self.outer, coroutine, future)
        except OSError:
            return DISCONNECT
        finally:
            self._pulling = False
            if self.watched:  # somebody has asked for it meanwhile
                self._start_watcher()

    def take(self, message: Message) -> None:
        """Act on what the server tells."""
        self.expected = False  # it has been told
        if message["type"] == "http.disconnect":
            self.lose()
        elif not self.ended:
            if self.has_body:
                self.opened_body().feed(message)
            self.ended = not message.get("more_body", False)

    def watch(self) -> None:
        """See to it that a disconnection is noticed from now on."""
        if not (self.watched or self.disconnected or self.ending):
            self.watched = True
            self.fresh = False
            if not self._pulling:
                self._start_watcher()

    def _start_watcher(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.get_running_loop().create_task(self._watch(), context=self.outer.copy())

    async def _watch(self) -> None:
        self._resumed = asyncio.Event()
        while not self.disconnected:
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
                    self.lose()  # nobody will tell more; the error is the event loop's to report
                    raise
                self.take(message)
                if ended or message["type"] == "http.disconnect":
                    return  # some servers go on telling the same, and never wait

    def lose(self) -> None:
        """Take the client for gone: its body fails, writing fails, and its handler is cancelled if so desired.

        When the response is ending anyway, only what has not come of the body fails.
        """
        if self.body is not None and not (self.ending and self.ended):
            self.body.set_exception(ConnectionResetError("Connection lost"))
        if self.disconnected or self.ending:
            return
        self.disconnected = True
        if self.task is not None:
            self.cancelled = True
            self.task.cancel()
        for give_up in self.on_lost:
            give_up()

    def abort(self) -> None:
        """See to it that the server closes the connection."""
        self.aborted = True
        self.lose()

    def close(self) -> None:
        """End the exchange: nobody waits for the server, and nobody reads."""
        self.closed = True
        self.fresh = False
        # What these refer to refers to this: nothing is to be left for the garbage collector.
        if self.watched:
            self.watched = False
            if self._watcher is not None:
                self._watcher.cancel()
            self._watcher = self._transport = None
        if self.body is not None:
            self.body.set_exception(web.PayloadAccessError())
            self.body.decoder = None
            self.body = None

    # As a writer

    def enable_chunking(self) -> None:
        """Do nothing: framing is the server's."""

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        self._compressor = ZLibCompressor(encoding=encoding, strategy=strategy)

    async def drain(self) -> None:
        """Do nothing: ASGI's `send` returns when there is room for more."""

    async def write_headers(self, status_line: str, headers: "CIMultiDict[str]") -> None:
        if self.committed:
            raise RuntimeError("another response to the request has been started")
        status = int(status_line.split(" ", 2)[1])
        self._bodiless = must_be_empty_body(self.scope["method"], status)
        self._lock = asyncio.Lock()
        encoded = encode_headers(headers)
        if self.awaits_continue() or headers.get(hdrs.CONNECTION, "").lower() == "close":
            self.close_after(encoded)
        self._head = {"type": "http.response.start", "status": status, "headers": encoded}

    def close_after(self, headers: RawHeaders) -> None:
        """Ask the server to close the connection after the response; the others of HTTP/2 and 3 stay."""
        if self.scope["http_version"] in HTTP_1:
            headers.append(CLOSE)

    def send_headers(self) -> None:
        self.committed = True
        self._attend()

    def _attend(self) -> None:
        """Flush the head, and watch for a disconnection, unless the response is complete before the loop runs."""
        if not self._attended:
            self._attended = True
            asyncio.get_running_loop().call_soon(self._attend_now, context=self.outer)

    def _attend_now(self) -> None:
        if not self.ending:
            if self._head is not None:
                self._flusher = asyncio.get_running_loop().create_task(self.flush(), context=self.outer.copy())
            self.watch()

    async def flush(self) -> None:
        """Send the head, if it is still held back."""
        if self._head is not None:
            try:
                await self._emit(b"", more=True)
            except ConnectionError:  # whoever writes will learn of it
                return

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if self._head is None and not self.committed:
            return  # an interim response of an Expect handler: the server sends one when the body is asked for
        data = bytes(chunk)
        if self._compressor is not None:
            data = await self._compressor.compress(data)
        if self._bodiless:
            data = b""
        elif self.length is not None:
            data = data[: self.length]
            self.length -= len(data)
        if not data and self._head is None:
            return
        self._attend()
        await within(self.outer, self._emit(data, more=True))
        self.buffer_size += len(data)
        if self.buffer_size > _YIELD:
            self.buffer_size = 0
            await asyncio.sleep(0)

    async def write_eof(self, chunk: bytes = b"") -> None:
        if self.ending:
            return
        data = bytes(chunk)
        if self._compressor is not None:
            data = await self._compressor.compress(data) + self._compressor.flush()
        if self._bodiless:
            data = b""
        elif self.length is not None:
            if len(data) < self.length:
                raise RuntimeError(f"the response lacks {self.length - len(data)} bytes of its Content-Length")
            data = data[: self.length]
        await within(self.outer, self._emit(data, more=False))

    async def _emit(self, data: bytes, *, more: bool) -> None:
        try:
            async with self._lock:  # tasks of one handler may write to one response
                if self.disconnected:
                    raise ClientConnectionResetError("Cannot write to closing transport")
                if self.ending:
                    raise RuntimeError("Cannot write after the end of the response")
                self.committed = True
                self.ending = not more
                self.output_size += len(data)
                whole = self._head is not None
                if self._head is not None:
                    head, self._head = self._head, None
                    await self._send(head)
                if not more and self.must_linger():
                    await self.end_lingering(data, whole=whole)
                else:
                    await self._send({"type": "http.response.body", "body": data, "more_body": more})
                self.finished = self.ending
        except OSError as error:
            self.ending = False
            self.lose()
            raise ClientConnectionResetError("Cannot write to closing transport") from error
        except BaseException:  # a time-out of the handler, perhaps: nobody knows how much has gone
            if not (self.finished or self.disconnected):
                self.ending = False
                self.abort()
            raise

    def awaits_continue(self) -> bool:
        """Whether the client still waits for `100 Continue` before it sends the body."""
        return self.expected and self.has_body and not self.ended

    def must_linger(self) -> bool:
        """Whether a part of the body is still to come. A client that waits for `100 Continue` will not send it."""
        if self.ended or not self.has_body or self.disconnected or self._pulling:
            return False
        return not self.expected

    async def end_lingering(self, data: bytes, *, whole: bool) -> None:
        """Send the last of the response, or its whole body, and throw the rest of the request's body away.

        Most servers drop that rest, or the connection, when the response ends: for them, it ends after that. Granian
        drops both when it has as many bytes as a response announced that has not ended, or when a streamed one ends;
        nothing but the extension tells it from the others.
        """
        if whole and "http.response.pathsend" in (self.scope.get("extensions") or ()):
            await self._send({"type": "http.response.body", "body": data})
            await self._linger()
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        self.close()  # a watcher would keep what comes, and stop when the body is full
        try:
            async with asyncio.timeout(LINGER):
                while not self.ended:
                    message = await self._receive()
                    self.ended = not message.get("more_body", False)
        except (TimeoutError, OSError):
            return

    def retract(self) -> bool:
        """Take back a response of which nothing has gone; false when it is too late."""
        if self.committed:
            return False
        self._head = self._compressor = self.length = None
        return True
