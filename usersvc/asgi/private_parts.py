"""All that the package touches of aiohttp beyond its documented API.

`tests/asgi/test_private_parts.py` says what changed when an upgrade breaks it.
"""

# pyright: reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# Ruff has the reason of each private use; and what a handler returns is not always what its type says.

import asyncio
import inspect
import ssl
import sys
import types
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_app import _cached_build_middleware
from aiohttp.web_urldispatcher import PlainResource, ResourceRoute, UrlDispatcher, UrlMappingMatchInfo
from multidict import CIMultiDictProxy
from propcache.api import cached_property
from yarl import URL

from usersvc.asgi.response_headers import encode_headers
from usersvc.asgi.scopes import Message

if TYPE_CHECKING:
    from usersvc.asgi.exchange import Exchange

Handler = Callable[[web.Request], Awaitable[object]]

ASGI_SCOPE: Final = web.RequestKey("ASGI_SCOPE", dict[str, Any])
"""The key of a request's ASGI scope, with the server's `state`, `extensions` and `root_path`."""

_BUFFER: Final = 2**18  # bytes; twice as many of a body wait to be read, at most, as in aiohttp
_STATUSES_WITHOUT_BODY: Final = frozenset({*range(100, 200), 204, 304})  # RFC 9110, section 6.4.1
_METHODS_WITHOUT_BODY: Final = frozenset({"HEAD", "CONNECT"})
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_EMPTY: Final = (b"content-length", b"0")
_ESCAPES: Final = frozenset("%?#")  # a path that has one is not what it looks like in a target


class Body(StreamReader):
    """A request body that whoever reads it pulls from ASGI. Private: `StreamReader._wait`, awaited for more data."""

    __slots__ = ("_exchange", "_held", "_last", "coding", "decoder")

    def __init__(self, exchange: "Exchange", coding: str | None) -> None:
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


class Request(web.Request):
    """A request that makes what few handlers look at only when one does.

    Private: the attributes, which `BaseRequest.__init__` would set, and all of its methods read.
    """

    ordinary: Callable[..., web.Request]  # makes requests as aiohttp does
    own: bool  # the application makes requests in a way of its own
    app_of_route: web.Application
    _route: web.AbstractRoute | None = None  # found without aiohttp's router
    ATTRS = web.Request.ATTRS | {"_route"}
    _payload_writer: "Exchange"

    def begin(self, exchange: "Exchange") -> None:
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


def request_class(app: web.Application, server: web.Server, exchange: "Exchange") -> type[Request]:
    """Make a class of what all requests of an application have in common; the exchange is an example."""
    message = exchange.message()
    own = not _is_aiohttps(server.request_factory, web.Application, "_make_request")
    common: dict[str, Any] = {}
    if not own:
        pattern = server.request_factory(message, EMPTY_PAYLOAD, cast("Any", exchange), exchange, cast("Any", None))
        common = {name: value for name, value in vars(pattern).items() if name not in vars(Request)}
    ours = {"ordinary": staticmethod(server.request_factory), "own": own, "app_of_route": app}
    return type("Request", (Request,), {**common, **ours})


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


def fixed_routes(app: web.Application) -> dict[bytes, dict[str, tuple[web.AbstractRoute, Handler]]]:
    """The routes that a path and a method decide upon alone, with their handlers in their middlewares.

    A router of a subclass may find other routes, unless it has a true attribute `finds_fixed_paths_as_aiohttp`.

    Private: what `Application._handle` and `UrlDispatcher.resolve` do for these routes, neither of which is called.
    """
    table: dict[bytes, dict[str, tuple[web.AbstractRoute, Handler]]] = {}
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
                    handler: Handler = route.handler
                    if app._run_middlewares:  # noqa: SLF001
                        handler = _cached_build_middleware(route.handler, (app,))
                    methods.setdefault(route.method, (route, handler))
    return table


def close_files(request: web.Request) -> None:
    """Close the files of an uploaded form."""
    request._finish()  # noqa: SLF001


def has_hooks(app: web.Application) -> bool:
    """Whether a response of this application, or of one in it, is shown to anybody before it is sent."""
    return bool(app.on_response_prepare) or any(map(has_hooks, app._subapps))  # noqa: SLF001


def whole_response(method: str, response: web.Response) -> tuple[Message, bytes] | None:
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
    encoded = encode_headers(headers)
    if not body:
        encoded.append(_EMPTY)
    else:
        encoded.append((b"content-length", b"%d" % len(body)))
        if hdrs.CONTENT_TYPE not in headers:
            encoded.append(_OCTETS)  # RFC 9110, section 8.3
    response._eof_sent = True  # noqa: SLF001  # `prepared`, and never sent again
    return {"type": "http.response.start", "status": status, "headers": encoded}, body or b""


class Transport(asyncio.Transport):
    """What `request.transport` is for: whether the client is there, and who it is."""

    def __init__(self, exchange: "Exchange") -> None:
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
