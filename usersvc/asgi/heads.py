"""Translates the heads of requests and responses between ASGI and aiohttp."""

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from aiohttp import hdrs
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11
from multidict import CIMultiDict, istr
from yarl import URL

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

HTTP_1: Final = {"1.0": HttpVersion10, "1.1": HttpVersion11}
DISCONNECT: Final[Message] = {"type": "http.disconnect"}
_CACHED_TARGET: Final = 256  # bytes; longer targets would make the cache too large
_ENCODED: Final[dict[tuple[str, str], tuple[bytes, bytes]]] = {}
_CACHED_HEADERS, _CACHED_VALUE = 1024, 256  # how many headers are kept in it, and the longest value in characters
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5
_SET_BY_SERVER: Final = frozenset(
    ("connection", "date", "keep-alive", "proxy-connection", "server", "te", "trailer", "transfer-encoding", "upgrade")
)


class Multiplexed(HttpVersion):
    """HTTP/2 or 3, which equals 1.1 too: aiohttp compares with 1.1 before it streams or reads `Expect`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in (tuple(self), tuple(HttpVersion11))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(HttpVersion11)


def sockname_of(scope: Scope) -> Any:
    """The server's address as a socket has it: four parts for IPv6, the path of a Unix domain socket."""
    host, port = scope.get("server") or ("", None)
    if not port:
        return host or None
    return (host, port, 0, 0) if ":" in host else (host, port)


class _Names(dict[bytes, istr]):
    """Names of request headers in the spelling of `aiohttp.hdrs`; others stay as they are."""

    def __missing__(self, raw: bytes) -> istr:
        return istr(raw.decode("utf-8", "surrogateescape"))


_NAMES: Final = _Names((str(name).lower().encode(), name) for name in vars(hdrs).values() if isinstance(name, istr))


def headers_of(raw_headers: Iterable[tuple[bytes, bytes]], version: HttpVersion) -> "CIMultiDict[str]":
    """The headers of a request, decoded as aiohttp decodes them."""
    headers = CIMultiDict([(_NAMES[name], value.decode("utf-8", "surrogateescape")) for name, value in raw_headers])
    if version > HttpVersion11 and len(cookies := headers.getall(hdrs.COOKIE, ())) > 1:
        headers[hdrs.COOKIE] = "; ".join(cookies)  # RFC 9113, section 8.2.3
    return headers


def target_of(scope: Scope) -> tuple[str, URL]:
    """The request target without the `root_path`, percent-encoding untouched; and its URL.

    Raises:
        ValueError: the target has none of the allowed forms (RFC 9112, section 3.2).
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"]).encode()
    elif b"?" in raw:
        raw = raw.partition(b"?")[0]  # some servers leave the query there
    if root_path := scope.get("root_path", "").rstrip("/"):
        rest = raw.removeprefix(quote(root_path).encode())
        raw = rest if not rest or rest.startswith(b"/") else raw
    if query := scope["query_string"]:
        raw = b"%b?%b" % (raw or b"/", query)
    return _parse(raw) if len(raw) <= _CACHED_TARGET else _parse.__wrapped__(raw)


@lru_cache(maxsize=1024)
def _parse(raw: bytes) -> tuple[str, URL]:
    target = raw.decode("utf-8", "surrogateescape") or "/"
    if target.startswith("/"):
        rest, _, fragment = target.partition("#")
        path, _, query = rest.partition("?")
        return target, URL.build(path=path, query_string=query, fragment=fragment, encoded=True)
    url = URL(target, encoded=True)
    if target != "*" and not url.raw_host:
        raise ValueError("The request target has no host.")
    return target, url


def encode_headers(headers: "CIMultiDict[str]") -> RawHeaders:
    """Encode response headers, except those that the server sends itself.

    Raises:
        ValueError: a header contains a control character, which could begin a header of an attacker's choice.
    """
    return [header for item in headers.items() if (header := _ENCODED.get(item) or _encode_header(*item))[0]]


def _encode_header(name: str, value: str) -> tuple[bytes, bytes]:
    raw = _encode_name(name)
    header = raw, _encode(value).strip()  # some servers abort at white space around a value
    # Most headers are the same in each response. A cookie may be a secret, which nothing may keep.
    if len(value) <= _CACHED_VALUE and raw != b"set-cookie":
        if len(_ENCODED) >= _CACHED_HEADERS:
            _ENCODED.clear()  # else values that are never used again, as request ids, would fill it for good
        _ENCODED[name, value] = header
    return header


@lru_cache(maxsize=1024)
def _encode_name(name: str) -> bytes:
    lower = name.lower()
    return b"" if lower in _SET_BY_SERVER else _encode(lower)


def _encode(text: str) -> bytes:
    if text.isprintable():  # needs no search for control characters, which takes longer
        return text.encode()
    if _FORBIDDEN.search(text):
        raise ValueError("a response header contains a control character")
    return text.encode("utf-8", "ignore")  # surrogates are left out, as in aiohttp
