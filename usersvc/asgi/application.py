"""Serves an aiohttp application from an ASGI server; `docs/asgi.md` has the differences to aiohttp's own server."""

import asyncio
import logging
import types
from contextvars import copy_context
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import web

from usersvc.asgi.contexts import as_coroutine, resume_in_context, run_in_context
from usersvc.asgi.exchange import Exchange
from usersvc.asgi.heads import DISCONNECT, HTTP_1, Receive, Scope, Send
from usersvc.asgi.private_parts import Handler, close_files, fixed_routes, has_hooks, request_class, whole_response

ASGI_STATE: Final = web.AppKey("ASGI_STATE", dict[str, Any])
"""The key of the application's lifespan state: what start-up puts there is in every `request[ASGI_SCOPE]["state"]`."""

_LOG: Final = logging.getLogger("aiohttp.server")  # as aiohttp's own server


class AiohttpASGI:
    """An `aiohttp.web.Application` as an ASGI 3 application.

    Args:
        app: the application; it is started once, by the lifespan protocol or by the first request.

    Raises:
        TypeError: `app` is not a `web.Application`.
    """

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._runner = web.AppRunner(app)
        self._server: web.Server | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopped = False

    async def __call__(  # noqa: PLR0912, PLR0915  # one function, as calls are most of what a request costs
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one ASGI scope: a request, or the application's lifespan.

        Raises:
            ValueError: the type of the scope is unknown.
            Exception: a response has failed after its head was sent. The server must close the connection, so that the
                client does not take the response for complete.
        """
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send)
        if self._server is None:  # requests that arrive meanwhile wait for the same start
            self._starting = self._starting or asyncio.create_task(self._start(None))
            await asyncio.shield(self._starting)
        first = None
        if scope["http_version"] not in HTTP_1 and (first := await exchange.peek()) is DISCONNECT:
            return
        try:
            request = exchange.request(self._request_class, first)
        except ValueError as error:
            await exchange.refuse(error)
            return
        handler = self._handler
        if (routes := self._routes.get(scope.get("raw_path", b""))) is not None:
            route = routes.get(scope["method"])
            if route is not None and not (scope.get("root_path") or exchange.expected):
                request._route, handler = route  # noqa: SLF001
        inner = copy_context()  # servers may use the context in which `send` is called for later requests
        whole = None
        try:
            try:
                # As `run_in_context`, without its coroutine.
                coroutine: Any = handler(request)
                if type(coroutine) is not types.CoroutineType:
                    coroutine = as_coroutine(coroutine)
                try:
                    future = inner.run(coroutine.send, None)
                except StopIteration as done:
                    response: object = done.value
                else:
                    response = await resume_in_context(inner, coroutine, future)
                if type(response) is web.Response and not (self._hooks or exchange.committed or not exchange.connected):
                    whole = whole_response(scope["method"], response)
            except web.HTTPException as error:
                await run_in_context(inner, self._respond(request, exchange, error))
            except Exception as error:
                await run_in_context(inner, self._fail(request, exchange, error))
            else:
                if whole is None:
                    await run_in_context(inner, self._respond(request, exchange, response))
                else:
                    start, body = whole
                    if exchange.has_body and exchange.awaits_continue():
                        exchange.close_after(start["headers"])
                    exchange.finished = exchange.ending = True
                    await send(start)
                    if exchange.must_linger():
                        await exchange.end_lingering(body, whole=True)
                    else:
                        await send({"type": "http.response.body", "body": body})
        except OSError:
            if not exchange.ending:
                raise  # else the client has disconnected
        finally:
            exchange.ending = True
            if exchange.has_body or exchange.watched:
                exchange.close()
                close_files(request)
        if exchange.aborted:
            raise ConnectionAbortedError("the handler has closed the connection or abandoned a write")

    async def _respond(self, request: web.Request, exchange: Exchange, response: object) -> None:
        """Send what a handler has returned, or the HTTP exception that it has raised."""
        try:
            if not isinstance(response, web.StreamResponse):
                raise TypeError(f"A handler has returned {response!r}, which is not a response")
            await response.prepare(request)
            await response.write_eof()
            if not exchange.finished:
                raise RuntimeError("a response object can be sent only once")
        except Exception as error:
            await self._fail(request, exchange, error)

    async def _fail(self, request: web.Request, exchange: Exchange, error: Exception) -> None:
        """Send an error response or, if a response has begun, let the server report the error and abort it."""
        if not exchange.connected and isinstance(error, ConnectionError):
            return
        done = not exchange.connected or exchange.finished
        if exchange.committed and not done:
            raise error
        _LOG.error("A request of %s has failed", request.remote, exc_info=error)
        if done:
            return
        if isinstance(error, TimeoutError):
            response = web.Response(status=HTTPStatus.GATEWAY_TIMEOUT, content_type="text/plain")
        else:
            response = web.Response(status=500, text="500 Internal Server Error\n\nServer got itself in trouble")
        exchange.compressor = exchange.length = None
        response.force_close()
        await response.prepare(request)
        await response.write_eof()

    async def _serve_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()  # websocket.connect
            await send({"type": "websocket.close"})
        else:
            raise ValueError(f"unknown type of ASGI scope: {scope['type']!r}")

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # lifespan.startup
        try:
            if self._server is None or self._stopped:
                await self._start(scope.get("state"))
        except (Exception, SystemExit) as error:
            await send({"type": "lifespan.startup.failed", "message": _one_line(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        stopped = {"type": "lifespan.shutdown.complete"}
        try:
            await receive()  # lifespan.shutdown
        finally:  # also when the server stops waiting
            try:
                await self._stop()
            except Exception as error:
                _LOG.exception("The clean-up of the application has failed")
                stopped = {"type": "lifespan.shutdown.failed", "message": _one_line(error)}
        await send(stopped)

    async def _start(self, state: dict[str, Any] | None) -> None:
        """Start the application as `web.run_app` does, and clean up if that fails."""
        if self._stopped:
            raise RuntimeError("The application has been cleaned up, and cannot start again")
        if not self._app.frozen:
            self._app[ASGI_STATE] = {} if state is None else state
        try:
            await self._runner.setup()
        except BaseException:
            await self._stop()
            raise
        self._hooks = has_hooks(self._app)
        self._server = cast("web.Server", self._runner.server)
        self._handler = cast("Handler", self._server.request_handler)
        self._request_class = request_class(self._app)
        self._routes = fixed_routes(self._app)

    async def _stop(self) -> None:
        self._stopped = True
        await self._runner.cleanup()


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
