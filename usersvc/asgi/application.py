"""Serve an aiohttp application from an ASGI server.

`AiohttpASGI(app)` is an ASGI 3 application around any `aiohttp.web.Application`: uvicorn, hypercorn, granian and
test clients can serve what was written for aiohttp's own server. Handlers get a real `web.Request` and return real
`web.StreamResponse`s; only the wire is somebody else's.

How it works:
    aiohttp's requests and responses talk to a protocol, a transport and a stream writer. One `_Exchange` a request
    stands in for them, over ASGI's `receive` and `send`. The request is of a class that makes its headers, its URL, its
    body stream and nearly all else when somebody looks at them. A body is pulled, message by message, by
    the coroutine that reads it: a handler that does not read makes the client stop sending. Only an exchange whose
    disconnection somebody could notice (a streamed response, a look at `request.transport`, `cancel_on_disconnect`,
    `handler_cancellation`) gets a task that waits for it. A route that a path and a method decide upon alone is looked
    up in a table, not searched for, and a plain `web.Response` goes past aiohttp's writer. Handlers run in a copy of
    the server's context, and `receive` and `send` outside it: servers hand the context they are called in to later
    requests.

Where a client, or a handler, sees something else than with aiohttp's own server:
    - `Date`, `Server`, `Connection` (but for `close`), `Keep-Alive`, `Transfer-Encoding` and the like are left to the
      ASGI server, so that none comes twice. So are reason phrases, time-outs, and limits on lines and headers. Uvicorn
      sends what has no `Content-Length` in chunks, to clients of HTTP/1.0 too.
    - What the server's parser refuses, it refuses in its own words; what it repairs (absolute targets, a bare `?` or a
      fragment at the end of a target, interim responses) is not seen here.
    - Request header names lose the case they were sent in; those that `aiohttp.hdrs` knows have its spelling. Response
      header names are sent in lower case.
    - A target is routed less its `root_path`, which `request[ASGI_SCOPE]` has.
    - A body in a coding for which a library is missing (Brotli, zstd) is passed on as it came, like one in a coding
      that is not known at all; aiohttp refuses it before the handler runs.
    - A body comes when it is read: `content.read_nowait()`, `is_eof()` and `total_bytes` know of nothing before.
      `iter_chunks()` never reports the end of an HTTP chunk.
    - `100 Continue` is sent when the handler first reads the body, not before the handler runs. A response to a client
      that still waits for it has `Connection: close`, as its body may or may not follow (RFC 9110, section 10.1.1).
    - Trailer fields are never among the headers of a request (RFC 9110, section 6.5.1). Uvicorn's h11, hypercorn and
      granian drop them. Uvicorn's httptools appends them to the header list of the scope whenever they arrive: what is
      appended after the scope was passed is ignored here, but trailer fields that arrive in one piece with the head
      are in the list before and cannot be told from header fields. The protocol of `usersvc.server` drops them.
    - The rest of a body that no handler has read is thrown away, for two seconds at most (aiohttp: ten), before the
      response ends, not after (but at granian's); a handler that has ended its response cannot read on. A large body
      that nobody has read may still cost the connection: under granian and HTTP/1.1, when the response is streamed and
      of announced length; under hypercorn, which asks each client to continue, when it waits to be asked for.
    - Under HTTP/2 and 3, a request that does not tell its length is taken to have a body if it is a POST, PUT or PATCH;
      any other is handled when its first data, or its end, has come. `request.version` is the true one, but equals
      HTTP/1.1 as well: aiohttp compares it to find out whether it may stream.
    - A response that is longer than its `Content-Length` is cut, and one that is shorter is broken off; aiohttp breaks
      the framing. A body that a HEAD, 204 or 304 response must not have is left out.
    - When a response fails before anything of it was sent, or has been sent before, a 500 is. A second response to one
      request breaks off the first. When a handler raises what is no `Exception`, or closes `request.transport`,
      before that, the server answers in its own words. In all of these aiohttp closes the connection, breaks the
      framing or sends nothing.
    - A status or the name of a header that HTTP does not know is the server's to refuse: some close the connection.
      White space around the value of a header is left out. `CONNECT` to a host is answered 400, not 404.
    - `request.transport` knows `get_extra_info`, `is_closing`, `close` and `abort`, nothing else.
    - Tools that put methods of their own in the place of aiohttp's have to do so before the application starts.
    - There is no access log: the server has one. `handler_args` of the application configure aiohttp's server, and are
      not looked at.
    - WebSockets are refused: a handshake that the server takes for one with its own 403, or 501 where it lets the
      application choose; in other handshakes `WebSocketResponse.can_prepare` says no, and `prepare` answers 400.
    - Without the lifespan protocol the application is started by the first request, and never cleaned up.
"""

import asyncio
import logging
import traceback
import types
import warnings
from contextvars import ContextVar, copy_context
from html import escape
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import hdrs, web

from usersvc.asgi.contexts import as_coroutine, resumed, within
from usersvc.asgi.exchange import Exchange
from usersvc.asgi.private_parts import Handler, close_files, fixed_routes, has_hooks, request_class, whole_response
from usersvc.asgi.response_headers import TEXT
from usersvc.asgi.scopes import DISCONNECT, HTTP_1, Receive, Scope, Send

ASGI_STATE: Final = web.AppKey("ASGI_STATE", dict[str, Any])
"""The key of the application's lifespan state: what start-up puts there is in every `request[ASGI_SCOPE]["state"]`."""

_LOG: Final = logging.getLogger("aiohttp.server")  # where aiohttp's own server reports errors of handlers


class AiohttpASGI:
    """An `aiohttp.web.Application` as an ASGI 3 application.

    Args:
        app: the application; it is started once, by the lifespan protocol or else by the first request.
        handler_cancellation: whether a handler is cancelled when its client disconnects. If not, as is aiohttp's
            default, it goes on, and learns of it when it reads or writes.

    Raises:
        TypeError: `app` is not a `web.Application`.
    """

    def __init__(self, app: web.Application, *, handler_cancellation: bool = False) -> None:
        self._app = app
        self._runner = web.AppRunner(app)
        self._handler_cancellation = handler_cancellation
        self._server: web.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopped = False
        self._variables: list[tuple[ContextVar[Any], Any]] = []
        self._debug = False
        self._hooks = False

    async def __call__(  # noqa: PLR0912, PLR0915  # in one piece, as every request pays for each further call
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one ASGI scope: a request, or the application's life.

        Raises:
            ValueError: the scope is of a type that is not known.
            Exception: a response has failed after its head had gone. The server must close the connection, so that
                nobody takes what was sent for the whole.
        """
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        if self._server is None:
            await self._started()
        first = None
        if scope["http_version"] not in HTTP_1 and (first := await exchange.peek()) is DISCONNECT:
            return
        try:
            request = exchange.request(self._kind, first)
        except ValueError as error:
            await exchange.refuse(error)
            return
        handler = self._handler
        if (routes := self._routes.get(scope.get("raw_path", b""))) is not None:
            route = routes.get(scope["method"])
            if route is not None and not (scope.get("root_path") or exchange.expected or self._kind.own):
                request._route, handler = route  # noqa: SLF001
        inner = copy_context()
        for variable, value in self._variables:
            inner.run(variable.set, value)
        if self._handler_cancellation:
            exchange.task = request.task
            exchange.watch()
        try:
            whole = None
            response: object = None
            try:
                # As in `_within`, but without its coroutine, as most requests need none.
                coroutine = handler(request)
                if type(coroutine) is not types.CoroutineType:
                    coroutine = as_coroutine(coroutine)
                try:
                    future = inner.run(coroutine.send, None)
                except StopIteration as done:
                    response = done.value
                else:
                    response = await resumed(inner, coroutine, future)
                if type(response) is web.Response:
                    if not (self._hooks or exchange.committed or exchange.disconnected):
                        whole = whole_response(scope["method"], response)
                elif isinstance(response, web.HTTPException):
                    warnings.warn("raise HTTP exceptions, do not return them", DeprecationWarning, stacklevel=1)
            except Exception as error:
                answer = self._answer if isinstance(error, web.HTTPException) else self._fail
                await within(inner, answer(request, exchange, error))
            else:
                if whole is None:
                    await within(inner, self._answer(request, exchange, response))
            if whole is not None:
                start, body = whole
                if exchange.has_body:
                    close_files(request)
                    if exchange.awaits_continue():
                        exchange.close_after(start["headers"])
                exchange.finished = exchange.ending = True
                await send(start)
                if exchange.must_linger():
                    await exchange.end_lingering(body, whole=True)
                else:
                    await send({"type": "http.response.body", "body": body})
        except OSError:
            if not exchange.ending:
                raise  # else the client is gone, and nobody is left to tell
        except asyncio.CancelledError:
            if not exchange.cancelled or request.task.cancelling() > 1:  # somebody else has cancelled it, too
                raise
        finally:
            exchange.ending = True
            if exchange.has_body or exchange.watched:
                exchange.close()
                if exchange.cancelled:
                    request.task.uncancel()
        if exchange.aborted:
            raise ConnectionAbortedError("the handler has closed the connection, or given up writing to it")

    async def _answer(self, request: web.Request, exchange: Exchange, response: object) -> None:
        """Send what a handler has returned, or the HTTP exception that it has raised.

        Raises:
            Exception: the response has failed after its head had gone.
        """
        if exchange.has_body:
            close_files(request)
        try:
            if not isinstance(response, web.StreamResponse):
                _LOG.error("A handler has returned %r, which is no response", response)
                response = web.Response(status=500, text="500: Internal Server Error")
            await response.prepare(request)
            await response.write_eof()
            if not exchange.finished:
                raise RuntimeError("a response object can be sent only once")
        except Exception as error:
            await self._fail(request, exchange, error)

    async def _fail(self, request: web.Request, exchange: Exchange, error: Exception) -> None:
        """Answer an error as aiohttp does, or break off the response that is under way.

        Raises:
            Exception: the error itself, for the server to report, and to close the connection.
        """
        close_files(request)
        gone = exchange.disconnected or exchange.finished
        if exchange.disconnected and isinstance(error, ConnectionError):
            return
        if not gone and not exchange.retract():
            await exchange.flush()
            raise error
        _LOG.error("A request of %s has failed", request.remote, exc_info=error)
        if gone:
            return
        status = HTTPStatus.GATEWAY_TIMEOUT
        text: str | None = None
        content_type = "text/plain"
        if not isinstance(error, TimeoutError):
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            title = f"{status} {status.phrase}"
            trace = "".join(traceback.format_exception(error)) if self._debug else None
            text = f"{title}\n\n{trace or status.description}"
            if "text/html" in request.headers.get(hdrs.ACCEPT, ""):
                content_type = "text/html"
                detail = f"<h2>Traceback:</h2>\n<pre>{escape(trace)}</pre>" if trace else status.description
                text = f"<html><head><title>{title}</title></head><body>\n<h1>{title}</h1>\n{detail}\n</body></html>\n"
        response = web.Response(status=status, text=text, content_type=content_type)
        response.force_close()
        await response.prepare(request)
        await response.write_eof()

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(scope, receive, send)
        else:
            raise ValueError(f"unknown type of ASGI scope: {scope['type']!r}")

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            if self._server is None or self._stopped:
                await self._start(scope.get("state"))
        except (Exception, SystemExit) as error:
            await send({"type": "lifespan.startup.failed", "message": _one_line(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()  # lifespan.shutdown
        finally:  # also when the server gives up waiting
            failure = await self._stop()
        if failure is None:
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await send({"type": "lifespan.shutdown.failed", "message": _one_line(failure)})

    async def _start(self, state: dict[str, Any] | None) -> None:
        """Start the application as `web.run_app` does, down to the clean-up when that fails.

        Raises:
            RuntimeError: it has been cleaned up before; signals and contexts are of one life.
        """
        if self._stopped:
            raise RuntimeError("The application has been cleaned up, and cannot start again")
        if not self._app.frozen:
            self._app[ASGI_STATE] = {} if state is None else state
        before = copy_context()
        try:
            await self._runner.setup()
        except BaseException:
            await self._stop()
            raise
        # With aiohttp's own server, requests see the context variables that start-up sets.
        after = copy_context()
        self._variables = [
            (var, value) for var, value in after.items() if var not in before or before[var] is not value
        ]
        self._debug = asyncio.get_running_loop().get_debug()
        self._hooks = has_hooks(self._app)
        self._server = cast("web.Server", self._runner.server)
        self._handler = cast("Handler", self._server.request_handler)
        self._kind = request_class(self._app, self._server, _example())
        self._routes = {} if self._debug else fixed_routes(self._app)

    async def _stop(self) -> Exception | None:
        self._stopped = True
        try:
            await self._runner.cleanup()
        except Exception as error:
            _LOG.exception("The clean-up of the application has failed")
            return error
        return None

    async def _started(self) -> None:
        """Start the application, as no lifespan has; requests that come meanwhile wait for the same start."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start(None))
        await asyncio.shield(self._starting)


def _example() -> Exchange:
    scope: Scope = {"headers": [], "method": "GET", "raw_path": b"/", "query_string": b""}
    return Exchange(scope, cast("Receive", None), cast("Send", None))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()  # websocket.connect
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    text = b"WebSockets are not served here."
    headers = [TEXT, (b"content-length", b"%d" % len(text))]
    await send({"type": "websocket.http.response.start", "status": HTTPStatus.NOT_IMPLEMENTED, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": text})
