"""One request and its response, over ASGI's `receive` and `send`."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Final, cast

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict

from usersvc.asgi.contexts import run_in_context
from usersvc.asgi.heads import HTTP_1, Message, Multiplexed, RawHeaders, encode_headers
from usersvc.asgi.private_parts import Compressor, Request, is_bodiless
from usersvc.asgi.receiver import Receiver

LINGER: Final = 2
"""How long the rest of an unread body is received and dropped, in seconds."""
_YIELD_AFTER: Final = 2**16  # bytes; a server's `send` may never suspend, and the loop must run now and then


class Exchange(Receiver, AbstractStreamWriter):
    """Stands in for aiohttp's protocol and for its writer."""

    length: int | None = None  # bytes of the response that are still to come, if it has a Content-Length
    committed = False  # the head of the response has been sent
    finished = False  # the server has the whole response
    _bodiless = False  # the response must not have a body
    compressor: Compressor | None = None

    async def refuse(self, error: Exception) -> None:
        text = str(error).encode("utf-8", "replace")
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(text))]
        self.close_after(headers)
        await self._send({"type": "http.response.start", "status": HTTPStatus.BAD_REQUEST, "headers": headers})
        await self._send({"type": "http.response.body", "body": text})

    def request(self, kind: type[Request], first: Message | None) -> web.Request:
        """Create the request; `first` is its first message if that has been received."""
        scope = self.scope
        names = dict(self.raw_headers)
        if (version := scope["http_version"]) != "1.1":
            self.version = HTTP_1.get(version) or Multiplexed(int(version[0]), 0)
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
                self.unread = b"content-encoding" not in names
        return kind.of(self)

    # --- aiohttp's writer ---

    def enable_chunking(self) -> None:
        """Do nothing: the server does the framing."""

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        self.compressor = Compressor(encoding=encoding, strategy=strategy)

    async def drain(self) -> None:
        """Do nothing: ASGI's `send` waits until the client has read enough."""

    async def write_headers(self, status_line: str, headers: "CIMultiDict[str]") -> None:
        if self.committed:
            raise RuntimeError("another response to the request has been started")
        status = int(status_line.split(" ", 2)[1])
        self._bodiless = is_bodiless(self.scope["method"], status)
        self._lock = asyncio.Lock()
        encoded = encode_headers(headers)
        if self.awaits_continue() or headers.get(hdrs.CONNECTION, "").lower() == "close":
            self.close_after(encoded)
        start = {"type": "http.response.start", "status": status, "headers": encoded}
        await run_in_context(self.outer, self._emit(start))

    def close_after(self, headers: RawHeaders) -> None:
        if self.scope["http_version"] in HTTP_1:  # HTTP/2 connections serve other requests too
            headers.append((b"connection", b"close"))

    def send_headers(self) -> None:
        """Watch for a disconnection: a handler that streams may wait before it writes."""
        self.watch()

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if not self.committed:
            return  # an interim response: the server sends one when the body is received
        data = bytes(chunk)
        if self.compressor is not None:
            data = await self.compressor.compress(data)
        data = self._limit(data)
        if not data:
            return
        self.watch()
        await run_in_context(self.outer, self._emit({"type": "http.response.body", "body": data, "more_body": True}))
        self.buffer_size += len(data)
        if self.buffer_size > _YIELD_AFTER:
            self.buffer_size = 0
            await asyncio.sleep(0)

    async def write_eof(self, chunk: bytes = b"") -> None:
        if self.ending:
            return
        data = bytes(chunk)
        if self.compressor is not None:
            data = await self.compressor.compress(data) + self.compressor.flush()
        data = self._limit(data)
        if self.length and not self._bodiless:
            raise RuntimeError(f"the response lacks {self.length} bytes of its Content-Length")
        await run_in_context(self.outer, self._emit({"type": "http.response.body", "body": data, "more_body": False}))

    def _limit(self, data: bytes) -> bytes:
        """Cut off what exceeds the response's Content-Length."""
        if self._bodiless:
            return b""
        if self.length is not None:
            data = data[: self.length]
            self.length -= len(data)
        return data

    async def _emit(self, message: Message) -> None:
        try:
            async with self._lock:  # several tasks of a handler may write
                if not self.connected:
                    raise ClientConnectionResetError("Cannot write to closing transport")
                if self.ending:
                    raise RuntimeError("Cannot write after the end of the response")
                self.committed = True
                self.ending = message.get("more_body") is False
                if self.ending and self.must_linger():
                    await self.end_lingering(message["body"], whole=not self.output_size)
                else:
                    await self._send(message)
                self.output_size += len(message.get("body", b""))
                self.finished = self.ending
        except OSError as error:
            self.ending = False
            self.lose()
            raise ClientConnectionResetError("Cannot write to closing transport") from error
        except BaseException:  # for example a time-out of the handler: an unknown part has been sent
            if not (self.finished or not self.connected):
                self.ending = False
                self.abort()
            raise

    # --- the end of a response whose request has not been read ---

    def awaits_continue(self) -> bool:
        """Whether the client waits for `100 Continue` before it sends the body."""
        return self.expected and self.has_body and not self.ended

    def must_linger(self) -> bool:
        """Whether the rest of the body will arrive although the handler does not read it."""
        return self.has_body and not (self.ended or not self.connected or self.expected or self._receiving)

    async def end_lingering(self, data: bytes, *, whole: bool) -> None:
        """Send the last of the response, or its whole body, and drop the rest of the request's body.

        Most servers drop that rest or the connection when the response ends, so it ends afterwards. Granian, known by
        its extension, does so when it has all bytes of a Content-Length, unless the response has ended before.
        """
        if whole and "http.response.pathsend" in (self.scope.get("extensions") or ()):
            await self._send({"type": "http.response.body", "body": data})
            await self._linger()
        else:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        self.close()  # a watcher would store what arrives, and stop when its buffer is full
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(LINGER):
                while not self.ended:
                    self.ended = not (await self._receive()).get("more_body", False)


@contextmanager
def cancel_on_disconnect(request: web.Request) -> Generator[None]:
    """Cancel what is awaited within as soon as the client disconnects.

    Does nothing in a request of aiohttp's own server, which has `handler_cancellation`. To cancel every handler, use it
    in a middleware.

    Raises:
        ConnectionResetError: the client has disconnected.
    """
    exchange = request.writer
    if not isinstance(exchange, Exchange):
        yield
        return
    task = cast("asyncio.Task[object]", asyncio.current_task())
    cancelled_before = task.cancelling()
    disconnected = False

    def cancel() -> None:
        nonlocal disconnected
        disconnected = True
        task.cancel()

    exchange.watch()
    if not exchange.connected:
        raise ClientConnectionResetError("The client has disconnected")
    exchange.on_disconnect += (cancel,)
    try:
        yield
    except BaseException as error:
        # The server may have cancelled the task as well.
        only_disconnected = disconnected and task.uncancel() <= cancelled_before
        if only_disconnected and isinstance(error, asyncio.CancelledError):
            raise ClientConnectionResetError("The client has disconnected") from error
        raise
    finally:
        exchange.on_disconnect = tuple(other for other in exchange.on_disconnect if other is not cancel)
