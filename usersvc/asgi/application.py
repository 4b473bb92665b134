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

# pyright: reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# Ruff has the reason of each private use; and what a handler returns is not always what its type says.

import asyncio
import inspect
import logging
import re
import ssl
import sys
import traceback
import types
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache, partial
from html import escape
from http import HTTPStatus
from typing import Any, Final, NoReturn, TypeVar, cast
from urllib.parse import quote, unquote

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.helpers import must_be_empty_body
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_app import _cached_build_middleware
from aiohttp.web_urldispatcher import PlainResource, ResourceRoute, UrlDispatcher, UrlMappingMatchInfo
from multidict import CIMultiDict, CIMultiDictProxy, istr
from propcache.api import cached_property
from yarl import URL

__all__ = ("ASGI_SCOPE", "ASGI_STATE", "AiohttpASGI", "cancel_on_disconnect")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_RawHeaders = list[tuple[bytes, bytes]]
_Handler = Callable[[web.Request], Awaitable[object]]
_T = TypeVar("_T")

ASGI_SCOPE: Final = web.RequestKey("ASGI_SCOPE", dict[str, Any])
"""The key of a request's ASGI scope, with the server's `state`, `extensions` and `root_path`."""

ASGI_STATE: Final = web.AppKey("ASGI_STATE", dict[str, Any])
"""The key of the application's lifespan state: what start-up puts there is in every `request[ASGI_SCOPE]["state"]`."""

_LOG: Final = logging.getLogger("aiohttp.server")  # where aiohttp's own server reports errors of handlers
_BUFFER: Final = 2**18  # bytes; twice as many of a body wait to be read, at most, as in aiohttp
_LINGER: Final = 2  # seconds for which the rest of an unread body is thrown away
_YIELD: Final = 2**16  # bytes; a server's `send` may never suspend, and the loop must run now and then
_NAMES: Final = 1024  # header names are learned, but not without end
_NAME: Final = 64  # characters of a header name that is learned
_VALUES: Final = 16  # of one response header are learned
_VALUE: Final = 128  # characters of one
_TARGET: Final = 256  # characters of a target whose URL is learned
_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # never used: any context means "https" to aiohttp
_CODINGS: Final = {coding: coding for coding in ("gzip", "deflate", "br", "zstd")}
_HTTP_1: Final = frozenset({"1.0", "1.1"})
_USUALLY_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_STATUSES_WITHOUT_BODY: Final = frozenset({*range(100, 200), 204, 304})  # RFC 9110, section 6.4.1
_METHODS_WITHOUT_BODY: Final = frozenset({"HEAD", "CONNECT"})
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5
_SERVERS_OWN: Final = frozenset(
    ("connection", "date", "keep-alive", "proxy-connection", "server", "te", "trailer", "transfer-encoding", "upgrade")
)
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_EMPTY: Final = (b"content-length", b"0")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_CLOSE: Final = (b"connection", b"close")
_ESCAPES: Final = frozenset("%?#")  # a path that has one is not what it looks like in a target
_new: Final = object.__new__
_ORIGIN_FORM: Final = (b"/", b"")
_DISCONNECT: Final[Message] = {"type": "http.disconnect"}


def _sockname(host: str, port: int | None) -> tuple[str, int, int, int] | str:
    """Name an IPv6 address, or the path of a Unix domain socket, as sockets do: aiohttp looks at type and length."""
    return host if port is None else (host, port, 0, 0)


class _Multiplexed(HttpVersion):
    """HTTP/2 or 3, which passes for 1.1 too: aiohttp asks `== 1.1` before it streams or looks at `Expect`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in (tuple(self), tuple(HttpVersion11))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(HttpVersion11)


_VERSIONS: Final = {
    "1.0": HttpVersion10,
    "1.1": HttpVersion11,
    "2": _Multiplexed(2, 0),
    "2.0": _Multiplexed(2, 0),
    "3": _Multiplexed(3, 0),
    "3.0": _Multiplexed(3, 0),
}


class _RequestNames(dict[bytes, istr]):
    """Names of request headers: as in ASGI, to as in aiohttp."""

    def __missing__(self, raw: bytes) -> istr:
        name = istr(raw.decode("utf-8", "surrogateescape"))
        if len(self) < _NAMES and len(raw) <= _NAME:
            self[raw] = name
        return name


class _ResponseNames(dict[str, bytes]):
    """Names of response headers: as in aiohttp, to as in ASGI; empty when it is the server that sends the header."""

    def __missing__(self, name: str) -> bytes:
        lower = name.lower()
        raw = b"" if lower in _SERVERS_OWN else _checked(lower)
        if len(self) < _NAMES and len(name) <= _NAME:
            self[name] = raw
        return raw


_REQUEST_NAMES: Final = _RequestNames((str(n).lower().encode(), n) for n in vars(hdrs).values() if isinstance(n, istr))
_RESPONSE_NAMES: Final = _ResponseNames()
_RESPONSE_HEADERS: Final[dict[tuple[str, str], tuple[bytes, bytes]]] = {}  # those that come again and again
# How many values of a header have been learned. A cookie may be a secret, which nothing is to keep.
_VALUES_OF: Final[dict[bytes, int]] = {b"set-cookie": _VALUES}


def _checked(text: str) -> bytes:
    if _FORBIDDEN.search(text):
        raise ValueError("there is a control character in a response header")
    return text.encode("utf-8", "ignore")  # surrogates are left out, as aiohttp does


def _encoded(headers: "CIMultiDict[str]") -> _RawHeaders:
    """Response headers as ASGI wants them, less those that are the server's.

    Raises:
        ValueError: a header has a control character, which could begin another header of an attacker's choice.
    """
    encoded: _RawHeaders = []
    for item in headers.items():
        if (known := _RESPONSE_HEADERS.get(item)) is not None:
            encoded.append(known)
            continue
        name, value = item
        if raw := _RESPONSE_NAMES[name]:
            octets = value.encode() if value.isprintable() else _checked(value)  # faster
            encoded.append((raw, octets.strip()))  # some servers break off at white space around a value
            # What differs each time, as an id does, is soon given up.
            learned = _VALUES_OF.get(raw, 0)
            if (
                learned < _VALUES
                and len(name) <= _NAME
                and len(value) <= _VALUE
                and type(value) is str
                and len(_RESPONSE_HEADERS) < _NAMES
            ):
                _RESPONSE_HEADERS[item] = encoded[-1]
                _VALUES_OF[raw] = learned + 1
    return encoded


def _url(target: str) -> URL:
    """Parse a request target as aiohttp's parser does (RFC 9112, section 3.2).

    Raises:
        ValueError: the target is of no form that a request may have.
    """
    if target.startswith("/"):
        rest, _, fragment = target.partition("#")
        path, _, query = rest.partition("?")
        return URL.build(path=path, query_string=query, fragment=fragment, encoded=True)
    url = URL(target, encoded=True)
    if target != "*" and not url.raw_host:
        raise ValueError("The request target has no host.")
    return url


def _routed(raw: bytes, root_path: str) -> tuple[str, URL]:
    """Make a target, percent-encoding untouched, and its URL of what ASGI tells, less the `root_path`.

    Raises:
        ValueError: the target is of no form that a request may have.
    """
    target = raw.decode("utf-8", "surrogateescape") or "/"
    if root := root_path.rstrip("/"):
        path, mark, query = target.partition("?")
        segments = root.count("/") + 1
        parts = path.split("/", segments)
        if unquote("/".join(parts[:segments])) == root:
            target = "/" + "".join(parts[segments:]) + mark + query
    return target, _url(target)


_learned: Final = lru_cache(maxsize=1024)(_routed)


@types.coroutine
def _resumed(context: Context, coroutine: Coroutine[Any, Any, _T], future: Any) -> Generator[Any, Any, _T]:
    """Await, in a context of its own, the rest of a coroutine that waits for something.

    Together with a first `context.run(coroutine.send, None)`, this is what a task would do, at a fraction of its cost.
    """
    while True:
        step: Callable[[Any], Any]
        try:
            argument: Any = yield future
            step = coroutine.send
        except BaseException as error:  # cancellation, and the end of this generator, are the coroutine's to see
            step, argument = coroutine.throw, error
        try:
            future = context.run(step, argument)
        except StopIteration as done:
            result: _T = done.value
            return result
        finally:
            argument = None  # an error would refer to this frame, and be left for the garbage collector


async def _within(context: Context, awaitable: Awaitable[_T]) -> _T:
    """Await something in a context of its own."""
    is_coroutine = isinstance(awaitable, types.CoroutineType)
    coroutine = cast("Coroutine[Any, Any, _T]", awaitable) if is_coroutine else _awaited(awaitable)
    try:
        future = context.run(coroutine.send, None)
    except StopIteration as done:
        result: _T = done.value
        return result
    return await _resumed(context, coroutine, future)


async def _awaited(awaitable: Awaitable[_T]) -> _T:
    return await awaitable


# What follows, down to the rule, is all that this module touches of aiohttp beyond its documented API, besides the
# imports above. `tests/asgi/test_private_parts.py` says what changed when an upgrade breaks it.


class _Body(StreamReader):
    """A request body that whoever reads it pulls from ASGI. Private: `StreamReader._wait`, awaited for more data."""

    __slots__ = ("_exchange", "_held", "_last", "coding", "decoder")

    def __init__(self, exchange: "_Exchange", coding: str | None) -> None:
        super().__init__(exchange, _BUFFER, loop=asyncio.get_running_loop())  # type: ignore[arg-type]  # a protocol to what it asks
        self._exchange = exchange
        self.coding = coding
        self.decoder = DeflateBuffer(self, coding, max_decompress_size=_BUFFER) if coding else None
        self._held = False  # the decoder holds more than it would give at once
        self._last = False  # the last message has been fed

    def feed(self, message: Message) -> None:
        """Take what a message brings, decoded, in pieces of bounded size."""
        data: bytes = message.get("body", b"")
        self._last = not message.get("more_body", False)
        if self.decoder is not None:
            self._decode(self.decoder, data)
            return
        self.feed_data(data)
        if self._last:
            self.feed_eof()

    def feed_held(self) -> bool:
        """Take more of what the decoder holds; false when it holds nothing."""
        if self.decoder is None or not self._held:
            return False
        self._decode(self.decoder, b"")
        return True

    def _decode(self, decoder: DeflateBuffer, data: bytes) -> None:
        try:
            if data or self._held:  # aiohttp 3.14.0 does not bear to begin with nothing
                self._held = decoder.feed_data(data, len(data))
            if self._last and not self._held:
                decoder.feed_eof()
        except ContentEncodingError as error:
            self._held = False  # nothing more comes of it
            self.set_exception(web.RequestPayloadError(str(error)), error)

    async def _wait(self, func_name: str) -> None:
        if self._exchange.watched:
            await super()._wait(func_name)
        else:
            if not self.feed_held():
                self._exchange.take(await self._exchange.next_message(func_name))
            if (error := self.exception()) is not None:
                raise error

    async def wait_eof(self) -> None:
        self._exchange.watch()
        await super().wait_eof()


class _Request(web.Request):
    """A request that makes what few handlers look at only when one does.

    Private: the attributes, which `BaseRequest.__init__` would set, and all of its methods read.
    """

    ordinary: Callable[..., web.Request]  # makes requests as aiohttp does
    own: bool  # the application makes requests in a way of its own
    app_of_route: web.Application
    _route: web.AbstractRoute | None = None  # found without aiohttp's router
    ATTRS = web.Request.ATTRS | {"_route"}
    _payload_writer: "_Exchange"

    def begin(self, exchange: "_Exchange") -> None:
        """Set what is this request's own; what it shares with all others of its application is the class's."""
        self._payload_writer = exchange
        self._method = exchange.scope["method"]
        self._cache = {}
        self._task = asyncio.current_task()  # type: ignore[assignment]  # there is one
        if exchange.version is not HttpVersion11:
            self._version = exchange.version

    @cached_property
    def _match_info(self) -> UrlMappingMatchInfo | None:  # type: ignore[override]
        if self._route is None:
            return None
        match_info = UrlMappingMatchInfo({}, self._route)
        match_info.add_app(self.app_of_route)
        match_info.freeze()
        return match_info

    @cached_property
    def _state(self) -> dict[Any, Any]:  # type: ignore[override]
        return {ASGI_SCOPE: self._payload_writer.scope}

    @cached_property
    def _headers(self) -> "CIMultiDictProxy[str]":  # type: ignore[override]
        return CIMultiDictProxy(self._payload_writer.headers)

    @cached_property
    def _rel_url(self) -> URL:  # type: ignore[override]
        return self._payload_writer.target[1]

    @cached_property
    def _message(self) -> RawRequestMessage:  # type: ignore[override]
        return self._payload_writer.message()

    @cached_property
    def _payload(self) -> StreamReader:  # type: ignore[override]
        exchange = self._payload_writer
        return exchange.opened_body() if exchange.has_body else EMPTY_PAYLOAD

    @cached_property
    def _protocol(self) -> Any:  # type: ignore[override]
        return self._payload_writer

    @cached_property
    def _transport_sslcontext(self) -> ssl.SSLContext | None:  # type: ignore[override]
        return self._payload_writer.ssl_context

    @cached_property
    def _transport_peername(self) -> Any:  # type: ignore[override]
        return self._payload_writer.peername

    @cached_property
    def _transport_sockname(self) -> Any:  # type: ignore[override]
        return self._payload_writer.sockname

    async def read(self) -> bytes:
        # Mostly a body is one message: it need not go through a stream.
        exchange = self._payload_writer
        if exchange.fresh:
            message = await exchange.next_message("read")
            data: bytes = message.get("body", b"")
            more = message["type"] != "http.request" or message.get("more_body", False)
            if exchange.fresh and not more and not len(data) > self._client_max_size > 0:
                exchange.fresh = False
                exchange.ended = True
                exchange.taken = len(data)
                self._read_bytes = data
                return data
            exchange.take(message)
        return await super().read()


@contextmanager
def cancel_on_disconnect(request: web.Request) -> Iterator[None]:
    """Give up what is awaited within as soon as the client disconnects; only then is its going looked out for.

    For long waits of few handlers, where `handler_cancellation` would have every request pay, and would break off what
    had better come to its end. Within a request of aiohttp's own server it does nothing: that has a setting of its own.

    Raises:
        ConnectionResetError: the client has gone.
    """
    exchange: object = request._payload_writer  # noqa: SLF001
    if not isinstance(exchange, _Exchange):
        yield
        return
    task = cast("asyncio.Task[object]", asyncio.current_task())
    others = task.cancelling()
    gone = False

    def give_up() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    exchange.watch()
    if exchange.disconnected:
        raise ClientConnectionResetError("The client has disconnected")
    exchange.on_lost += (give_up,)
    try:
        yield
    except asyncio.CancelledError as error:
        # Not if somebody else, a server that stops perhaps, has cancelled the task as well.
        if gone and task.uncancel() <= others:
            raise ClientConnectionResetError("The client has disconnected") from error
        raise
    except BaseException:
        if gone:
            task.uncancel()
        raise
    finally:
        exchange.on_lost = tuple(other for other in exchange.on_lost if other is not give_up)


def _request_class(app: web.Application, server: web.Server) -> type[_Request]:
    """Make a class of what all requests of an application have in common."""
    scope = {"headers": [], "method": "GET", "raw_path": b"/", "query_string": b""}
    exchange = _Exchange(scope, cast("Any", None), cast("Any", None))
    message = exchange.message()
    own = not _is_aiohttps(server.request_factory, web.Application, "_make_request")
    common: dict[str, Any] = {}
    if not own:
        pattern = server.request_factory(message, EMPTY_PAYLOAD, cast("Any", exchange), exchange, cast("Any", None))
        common = {name: value for name, value in vars(pattern).items() if name not in vars(_Request)}
    ours = {"ordinary": staticmethod(server.request_factory), "own": own, "app_of_route": app}
    return type("Request", (_Request,), {**common, **ours})


def _is_aiohttps(method: object, kind: type, name: str) -> bool:
    """Whether this is the method that the class, aiohttp's or a subclass, was defined with, and not a replacement."""
    function = getattr(method, "__func__", method)
    module = sys.modules[next(k for k in kind.__mro__ if name in vars(k)).__module__]
    return type(function) is types.FunctionType and function.__globals__ is vars(module)


def _is_coroutine_function(handler: object) -> bool:
    """Whether nothing of a handler runs when it is called, only when it is awaited: not so with a class-based view."""
    while isinstance(handler, partial):
        handler = handler.func  # pyright: ignore[reportUnknownMemberType]  # of whatever type
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return code is not None and bool(code.co_flags & inspect.CO_COROUTINE)


def _is_simple(route: web.AbstractRoute) -> bool:
    """Whether a route always has the same handler, of the usual kind, for one method."""
    return type(route) is ResourceRoute and route.method != hdrs.METH_ANY and _is_coroutine_function(route.handler)


def _fixed_routes(app: web.Application) -> dict[bytes, dict[str, tuple[web.AbstractRoute, _Handler]]]:
    """The routes that a path and a method decide upon alone, with their handlers in their middlewares.

    A router of a subclass may find other routes, unless it has a true attribute `finds_fixed_paths_as_aiohttp`.

    Private: what `Application._handle` and `UrlDispatcher.resolve` do for these routes, neither of which is called.
    """
    table: dict[bytes, dict[str, tuple[web.AbstractRoute, _Handler]]] = {}
    router = app.router
    as_aiohttp = type(router) is UrlDispatcher or getattr(router, "finds_fixed_paths_as_aiohttp", False)
    plain = type(app) is web.Application and as_aiohttp and not router._matched_sub_app_resources  # noqa: SLF001
    if not plain or app._has_legacy_middlewares:  # noqa: SLF001
        return table
    if not (
        _is_aiohttps(app._handle, web.Application, "_handle")  # noqa: SLF001
        and _is_aiohttps(UrlDispatcher.resolve, UrlDispatcher, "resolve")
        and _is_aiohttps(router.resolve, type(router), "resolve")
        and _is_aiohttps(PlainResource.resolve, PlainResource, "resolve")
    ):
        return table  # somebody, perhaps one who traces, wants to see each request
    for path, resources in router._resource_index.items():  # noqa: SLF001
        for resource in resources:
            if type(resource) is not PlainResource or "resolve" in vars(resource) or not all(map(_is_simple, resource)):
                break  # what comes later may have to wait for it
            if resource.canonical == path and path.isascii() and not _ESCAPES.intersection(path):
                methods = table.setdefault(path.encode(), {})
                for route in resource:
                    handler: _Handler = route.handler
                    if app._run_middlewares:  # noqa: SLF001
                        handler = _cached_build_middleware(route.handler, (app,))
                    methods.setdefault(route.method, (route, handler))
    return table


def _close_files(request: web.Request) -> None:
    """Close the files of an uploaded form."""
    request._finish()  # noqa: SLF001


def _has_hooks(app: web.Application) -> bool:
    """Whether a response of this application, or of one in it, is shown to anybody before it is sent."""
    return bool(app.on_response_prepare) or any(map(_has_hooks, app._subapps))  # noqa: SLF001


def _whole(method: str, response: web.Response) -> tuple[Message, bytes] | None:
    """The first message and the body of a response to which aiohttp's writer would have nothing to add; else `None`.

    Raises:
        ValueError: a header must not be sent.
    """
    # Private, as the public properties cost more than the rest of this function, or would make what is not there.
    body = response._body  # noqa: SLF001
    headers = response._headers  # noqa: SLF001
    status = response._status  # noqa: SLF001
    if (
        (body is not None and type(body) is not bytes)
        or response._compression  # noqa: SLF001
        or response._chunked  # noqa: SLF001
        or response._cookies  # noqa: SLF001
        or response._keep_alive is False  # noqa: SLF001
        or response._payload_writer is not None  # noqa: SLF001
        or response._eof_sent  # noqa: SLF001
        or status in _STATUSES_WITHOUT_BODY
        or method in _METHODS_WITHOUT_BODY
        or hdrs.CONTENT_LENGTH in headers
        or hdrs.CONNECTION in headers
    ):
        return None
    encoded = _encoded(headers)
    if not body:
        encoded.append(_EMPTY)
    else:
        encoded.append((b"content-length", b"%d" % len(body)))
        if hdrs.CONTENT_TYPE not in headers:
            encoded.append(_OCTETS)  # RFC 9110, section 8.3
    response._eof_sent = True  # noqa: SLF001  # `prepared`, and never sent again
    return {"type": "http.response.start", "status": status, "headers": encoded}, body or b""


class _Transport(asyncio.Transport):
    """What `request.transport` is for: whether the client is there, and who it is."""

    def __init__(self, exchange: "_Exchange") -> None:
        super().__init__(
            {"peername": exchange.peername, "sockname": exchange.sockname, "sslcontext": exchange.ssl_context}
        )
        self._exchange = exchange

    @property
    def _sendfile_compatible(self) -> NoReturn:
        """Tell `loop.sendfile`, which looks here, and `web.FileResponse`, which asks it, that a file must be read."""
        raise NotImplementedError

    def is_closing(self) -> bool:
        return self._exchange.disconnected

    def close(self) -> None:
        self._exchange.abort()

    abort = close


# ----------------------------------------------------------------------------------------------------------------------


class _Exchange(AbstractStreamWriter):
    """One request and its response: aiohttp's protocol and writer, over ASGI's `receive` and `send`."""

    # What `request.multipart()` asks of its protocol, with the values of aiohttp's own server: bytes, and lines.
    max_line_size = 8190
    max_field_size = 8190
    max_headers = 128

    length: int | None = None  # bytes of the response that are still to come, when their number has been announced
    body: _Body | None = None
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
    _transport: _Transport | None = None
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
        return server if server is None or (server[1] and ":" not in server[0]) else _sockname(*server)

    async def peek(self) -> Message | None:
        """Wait for the first message of a request when only that tells whether there is a body."""
        scope = self.scope
        if scope["method"] in _USUALLY_WITH_BODY or any(name == b"content-length" for name, _ in self.raw_headers):
            return None
        message = await self._receive()
        return _DISCONNECT if message["type"] == "http.disconnect" else message

    async def refuse(self, error: Exception) -> None:
        """Answer a request that cannot be handed to the application."""
        text = str(error).encode("utf-8", "replace")
        headers = [_TEXT, (b"content-length", b"%d" % len(text))]
        self.close_after(headers)
        await self._send({"type": "http.response.start", "status": HTTPStatus.BAD_REQUEST, "headers": headers})
        await self._send({"type": "http.response.body", "body": text})

    def request(self, kind: type[_Request], first: Message | None) -> web.Request:
        """Make aiohttp's request of the ASGI scope.

        Raises:
            ValueError: the request target makes no sense.
        """
        scope = self.scope
        names = dict(self.raw_headers)
        if scope["http_version"] != "1.1":
            self.version = _VERSIONS.get(scope["http_version"], HttpVersion11)
        if first is not None:
            has_body = bool(first.get("body") or first.get("more_body"))
        elif (length := names.get(b"content-length")) is not None:
            has_body = length != b"0"
        else:
            has_body = b"transfer-encoding" in names or type(self.version) is _Multiplexed
        if b"expect" in names:
            self.expected = True
        if has_body:
            self.has_body = True
            if first is not None:
                self.take(first)
            else:
                self.fresh = b"content-encoding" not in names
        path = scope.get("raw_path") or scope["path"].encode("utf-8", "surrogateescape")
        if kind.own or path[:1] not in _ORIGIN_FORM:  # the rare target that may tell scheme and host
            payload = self.opened_body() if has_body else EMPTY_PAYLOAD
            special = kind.ordinary(self.message(), payload, self, self, asyncio.current_task())
            special[ASGI_SCOPE] = cast("dict[str, Any]", scope)
            return special
        request = _new(kind)
        request.begin(self)
        return request

    @cached_property
    def headers(self) -> "CIMultiDict[str]":
        names = _REQUEST_NAMES
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
        return (_learned if len(raw) <= _TARGET else _routed)(raw, scope.get("root_path", ""))

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

    def opened_body(self) -> _Body:
        """Make the body, when it is first asked for."""
        if self.body is None:
            self.fresh = False
            coding = _CODINGS.get(self.headers.get(hdrs.CONTENT_ENCODING, "").lower())
            try:
                body = _Body(self, coding)
            except ContentEncodingError:  # the library for it is missing
                body = _Body(self, None)
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
    def transport(self) -> _Transport | None:
        if self.disconnected:
            return None
        self.watch()  # whoever asks may want to know whether the client is still there
        if self._transport is None:
            self._transport = _Transport(self)
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
            coroutine = cast("Coroutine[Any, Any, Message]", awaitable if is_coroutine else _awaited(awaitable))
            try:
                future = self.outer.run(coroutine.send, None)
            except StopIteration as done:
                message: Message = done.value
                return message
            return await _resumed(self.outer, coroutine, future)
        except OSError:
            return _DISCONNECT
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
                    message = _DISCONNECT
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
        encoded = _encoded(headers)
        if self.awaits_continue() or headers.get(hdrs.CONNECTION, "").lower() == "close":
            self.close_after(encoded)
        self._head = {"type": "http.response.start", "status": status, "headers": encoded}

    def close_after(self, headers: _RawHeaders) -> None:
        """Ask the server to close the connection after the response; the others of HTTP/2 and 3 stay."""
        if self.scope["http_version"] in _HTTP_1:
            headers.append(_CLOSE)

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
        await _within(self.outer, self._emit(data, more=True))
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
        await _within(self.outer, self._emit(data, more=False))

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
            async with asyncio.timeout(_LINGER):
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
        exchange = _Exchange(scope, receive, send)
        if self._server is None:
            await self._started()
        first = None
        if scope["http_version"] not in _HTTP_1 and (first := await exchange.peek()) is _DISCONNECT:
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
                    coroutine = _awaited(coroutine)
                try:
                    future = inner.run(coroutine.send, None)
                except StopIteration as done:
                    response = done.value
                else:
                    response = await _resumed(inner, coroutine, future)
                if type(response) is web.Response:
                    if not (self._hooks or exchange.committed or exchange.disconnected):
                        whole = _whole(scope["method"], response)
                elif isinstance(response, web.HTTPException):
                    warnings.warn("raise HTTP exceptions, do not return them", DeprecationWarning, stacklevel=1)
            except Exception as error:
                answer = self._answer if isinstance(error, web.HTTPException) else self._fail
                await _within(inner, answer(request, exchange, error))
            else:
                if whole is None:
                    await _within(inner, self._answer(request, exchange, response))
            if whole is not None:
                start, body = whole
                if exchange.has_body:
                    _close_files(request)
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

    async def _answer(self, request: web.Request, exchange: _Exchange, response: object) -> None:
        """Send what a handler has returned, or the HTTP exception that it has raised.

        Raises:
            Exception: the response has failed after its head had gone.
        """
        if exchange.has_body:
            _close_files(request)
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

    async def _fail(self, request: web.Request, exchange: _Exchange, error: Exception) -> None:
        """Answer an error as aiohttp does, or break off the response that is under way.

        Raises:
            Exception: the error itself, for the server to report, and to close the connection.
        """
        _close_files(request)
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
        self._hooks = _has_hooks(self._app)
        self._server = cast("web.Server", self._runner.server)
        self._handler = cast("_Handler", self._server.request_handler)
        self._kind = _request_class(self._app, self._server)
        self._routes = {} if self._debug else _fixed_routes(self._app)

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


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


async def _refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()  # websocket.connect
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    text = b"WebSockets are not served here."
    headers = [_TEXT, (b"content-length", b"%d" % len(text))]
    await send({"type": "websocket.http.response.start", "status": HTTPStatus.NOT_IMPLEMENTED, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": text})
