"""Everything in this package that uses aiohttp beyond its documented API.

`tests/asgi` fails if an upgrade of aiohttp changes any of it.
"""

# pyright: reportPrivateUsage=false
# Ruff's comments have the reason of each private use.

import asyncio
import inspect
import sys
import types
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from aiohttp import hdrs, web
from aiohttp.compression_utils import HAS_BROTLI, HAS_ZSTD, ZLibCompressor
from aiohttp.helpers import must_be_empty_body
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_app import _cached_build_middleware
from aiohttp.web_urldispatcher import PlainResource, ResourceRoute, UrlDispatcher, UrlMappingMatchInfo
from multidict import CIMultiDictProxy
from propcache.api import cached_property

from usersvc.asgi.heads import Message, encode_headers

if TYPE_CHECKING:
    from usersvc.asgi.exchange import Exchange
    from usersvc.asgi.receiver import Receiver

Handler = Callable[[web.Request], Awaitable[object]]
Routes = dict[bytes, dict[str, tuple[web.AbstractRoute, Handler]]]

Compressor = ZLibCompressor
is_bodiless = must_be_empty_body
ASGI_SCOPE: Final = web.RequestKey("ASGI_SCOPE", dict[str, Any])
"""The key of a request's ASGI scope, with the server's `state`, `extensions` and `root_path`."""

CODINGS: Final = {"gzip", "deflate", *(["br"] if HAS_BROTLI else []), *(["zstd"] if HAS_ZSTD else [])}
_BUFFER: Final = 2**18  # bytes; aiohttp buffers twice as much of a body at most
_ESCAPES: Final = frozenset("%?#")  # a request target has these characters escaped


class Body(StreamReader):
    """A request body that is received while it is read. Private: `StreamReader._wait`, which waits for more data."""

    __slots__ = ("_holds_more", "_last", "_receiver", "decoder")

    def __init__(self, receiver: "Receiver", coding: str | None) -> None:
        super().__init__(receiver, _BUFFER, loop=asyncio.get_running_loop())  # type: ignore[arg-type]  # has what it uses
        self._receiver = receiver
        self.decoder = DeflateBuffer(self, coding, max_decompress_size=_BUFFER) if coding else None
        self._holds_more = False  # the decoder has more than it may return at once
        self._last = False  # the last message has been fed

    def feed(self, message: Message) -> None:
        """Decode what a message contains, in pieces of bounded size."""
        self._last = not message.get("more_body", False)
        self._feed(message.get("body", b""))

    def feed_held(self) -> bool:
        """Take more from the decoder; false when it holds nothing."""
        held = self._holds_more
        if held:
            self._feed(b"")
        return held

    def _feed(self, data: bytes) -> None:
        target = self.decoder or self
        try:
            if data or self._holds_more:  # aiohttp 3.14.0 fails if the first data is empty
                self._holds_more = target.feed_data(data, len(data))
            if self._last and not self._holds_more:
                target.feed_eof()
        except ContentEncodingError as error:
            self._holds_more = False
            self.set_exception(web.RequestPayloadError(str(error)), error)

    async def _wait(self, func_name: str) -> None:
        if self._receiver.watched:
            await super()._wait(func_name)
            return
        if not self.feed_held():
            self._receiver.take(await self._receiver.next_message(func_name))
        if (error := self.exception()) is not None:
            raise error

    async def wait_eof(self) -> None:
        self._receiver.watch()
        await super().wait_eof()


lazy: Any = cached_property


class Request(web.Request):
    """A request that creates the private attributes of `BaseRequest`, which its methods read, on first use."""

    _application: web.Application
    _route: web.AbstractRoute | None = None  # found without aiohttp's router
    _version = HttpVersion11
    ATTRS = web.Request.ATTRS | {"_route"}
    _payload_writer: "Exchange"

    @classmethod
    def of(cls, exchange: "Exchange") -> web.Request:
        """Create a request; what it shares with other requests of the application are attributes of its class.

        Raises:
            ValueError: the request target has none of the allowed forms.
        """
        path = exchange.scope.get("raw_path") or exchange.scope["path"].encode("utf-8", "surrogateescape")
        if path and not path.startswith(b"/"):  # aiohttp takes the host from an absolute target
            parts: Any = (raw_message(exchange), payload_of(exchange), exchange, exchange, asyncio.current_task())
            request = cls._application._make_request(*parts)  # noqa: SLF001
            request[ASGI_SCOPE] = cast("dict[str, Any]", exchange.scope)
            return request
        self = object.__new__(cls)
        self._payload_writer = exchange
        self._method = exchange.scope["method"]
        self._cache = {}
        self._task = asyncio.current_task()  # type: ignore[assignment]  # there is one
        if exchange.version is not HttpVersion11:
            self._version = exchange.version
        return self

    _match_info = lazy(lambda self: self._route and _match_of(self._route, self._application))
    _state = lazy(lambda self: {ASGI_SCOPE: self._payload_writer.scope})
    _headers = lazy(lambda self: CIMultiDictProxy(self._payload_writer.headers))
    _rel_url = lazy(lambda self: self._payload_writer.target[1])
    _message = lazy(lambda self: raw_message(self._payload_writer))
    _payload = lazy(lambda self: payload_of(self._payload_writer))
    _protocol = lazy(lambda self: self._payload_writer)
    _transport_sslcontext = lazy(lambda self: self._payload_writer.ssl_context)
    _transport_peername = lazy(lambda self: self._payload_writer.peername)
    _transport_sockname = lazy(lambda self: self._payload_writer.sockname)

    async def read(self) -> bytes:
        # Most bodies arrive as one message, which needs no stream.
        exchange = self._payload_writer
        if exchange.unread:
            message = await exchange.next_message("read")
            data: bytes = message.get("body", b"")
            more = message["type"] != "http.request" or message.get("more_body", False)
            if exchange.unread and not more and not len(data) > self._client_max_size > 0:
                exchange.unread = False
                exchange.ended = True
                self._read_bytes = data
                return data
            exchange.take(message)
        return await super().read()


def _match_of(route: web.AbstractRoute, app: web.Application) -> UrlMappingMatchInfo:
    match_info = UrlMappingMatchInfo({}, route)
    match_info.add_app(app)
    match_info.freeze()
    return match_info


def payload_of(exchange: "Receiver") -> StreamReader:
    """The body of a request."""
    return exchange.opened_body() if exchange.has_body else EMPTY_PAYLOAD


def raw_message(exchange: "Receiver") -> RawRequestMessage:
    """What aiohttp's parser would make of the head of the request."""
    method, version, headers = exchange.scope["method"], exchange.version, CIMultiDictProxy(exchange.headers)
    target, url = exchange.target
    connection = headers.get(hdrs.CONNECTION, "").lower()
    closes = "keep-alive" not in connection if version is HttpVersion10 else "close" in connection
    # None, False and False are compression, upgrade and chunked, which are of no use here.
    return RawRequestMessage(method, target, version, headers, exchange.raw_headers, closes, None, False, False, url)


def request_class(app: web.Application) -> type[Request]:
    """Create a class that has what all requests of an application have in common."""
    limits = {name: value for name, value in vars(app).items() if name.startswith("_client_max_")}
    return type("Request", (Request,), {**limits, "_application": app, "_loop": asyncio.get_running_loop()})


def _is_replaced(method: object, kind: type, name: str) -> bool:
    """Whether a method is not the one that its class was defined with: tracing tools replace methods."""
    function = getattr(method, "__func__", method)
    module = sys.modules[next(k for k in kind.__mro__ if name in vars(k)).__module__]
    return type(function) is not types.FunctionType or function.__globals__ is not vars(module)


def fixed_routes(app: web.Application) -> Routes:
    """The routes that depend on path and method alone, with their handlers in their middlewares.

    A router of a subclass may find other routes, unless it has a true attribute `finds_fixed_paths_as_aiohttp`.

    Private: what `Application._handle` and `UrlDispatcher.resolve` do for these routes, neither of which is called.
    """
    table: Routes = {}
    router = app.router
    if (
        type(app) is not web.Application
        or not (type(router) is UrlDispatcher or getattr(router, "finds_fixed_paths_as_aiohttp", False))
        or router._matched_sub_app_resources  # noqa: SLF001
        or app._has_legacy_middlewares  # noqa: SLF001
        or _is_replaced(app._handle, web.Application, "_handle")  # noqa: SLF001
        or _is_replaced(UrlDispatcher.resolve, UrlDispatcher, "resolve")
        or _is_replaced(router.resolve, type(router), "resolve")
    ):
        return table
    for path, resources in router._resource_index.items():  # noqa: SLF001
        for resource in resources:
            if type(resource) is not PlainResource or not all(map(_is_simple, resource)):
                break  # later resources are used only if this one does not match
            if resource.canonical == path and path.isascii() and not _ESCAPES.intersection(path):
                methods = table.setdefault(path.encode(), {})
                for route in resource:
                    handler: Handler = route.handler
                    if app._run_middlewares:  # noqa: SLF001
                        handler = _cached_build_middleware(route.handler, (app,))
                    methods.setdefault(route.method, (route, handler))
    return table


def _is_simple(route: web.AbstractRoute) -> bool:
    """Whether a route is for one method, and calling its handler does nothing, unlike with class-based views."""
    return type(route) is ResourceRoute and route.method != hdrs.METH_ANY and inspect.iscoroutinefunction(route.handler)


def close_files(request: web.Request) -> None:
    """Close the files of an uploaded form."""
    request._finish()  # noqa: SLF001


def has_hooks(app: web.Application) -> bool:
    """Whether this application, or one mounted in it, has `on_response_prepare` signals."""
    return bool(app.on_response_prepare) or any(map(has_hooks, app._subapps))  # noqa: SLF001


def whole_response(method: str, response: web.Response) -> tuple[Message, bytes] | None:
    """The first message and the body of a response to which aiohttp's writer has nothing to add; else `None`.

    Raises:
        ValueError: a header contains a control character.
    """
    # Private, as the public properties cost more than the rest of this function, or create what is missing.
    body = response._body or b""  # noqa: SLF001
    headers = response._headers  # noqa: SLF001
    status = response._status  # noqa: SLF001
    if (
        type(body) is not bytes
        or response._compression  # noqa: SLF001
        or response._chunked  # noqa: SLF001
        or response._cookies  # noqa: SLF001
        or response._keep_alive is False  # noqa: SLF001
        or response._payload_writer is not None  # noqa: SLF001
        or response._eof_sent  # noqa: SLF001
        or is_bodiless(method, status)
        or hdrs.CONTENT_LENGTH in headers
        or hdrs.CONNECTION in headers
        or (body and hdrs.CONTENT_TYPE not in headers)
    ):
        return None
    encoded = encode_headers(headers)
    encoded.append((b"content-length", b"%d" % len(body)))
    response._eof_sent = True  # noqa: SLF001  # marks it as sent
    return {"type": "http.response.start", "status": status, "headers": encoded}, body


class Transport(asyncio.Transport):
    """What handlers use `request.transport` for: whether the client is connected, and who it is."""

    def __init__(self, receiver: "Receiver") -> None:
        super().__init__(
            {"peername": receiver.peername, "sockname": receiver.sockname, "sslcontext": receiver.ssl_context}
        )
        self._receiver = receiver

    @property
    def _sendfile_compatible(self) -> NoReturn:
        """Make `loop.sendfile`, which reads this, and thus `web.FileResponse` read files instead."""
        raise NotImplementedError

    def is_closing(self) -> bool:
        return not self._receiver.connected

    def close(self) -> None:
        self._receiver.abort()

    abort = close
