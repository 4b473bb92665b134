"""What an ASGI scope says of a request."""

from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote

from aiohttp import hdrs
from aiohttp.http import HttpVersion, HttpVersion10, HttpVersion11
from multidict import istr
from yarl import URL

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = list[tuple[bytes, bytes]]

_NAMES: Final = 1024  # header names are learned, but not without end
_NAME: Final = 64  # characters of a header name that is learned
TARGET: Final = 256  # characters of a target whose URL is learned
HTTP_1: Final = frozenset({"1.0", "1.1"})
ORIGIN_FORM: Final = (b"/", b"")
DISCONNECT: Final[Message] = {"type": "http.disconnect"}


def sockname(host: str, port: int | None) -> tuple[str, int, int, int] | str:
    """Name an IPv6 address, or the path of a Unix domain socket, as sockets do: aiohttp looks at type and length."""
    return host if port is None else (host, port, 0, 0)


class Multiplexed(HttpVersion):
    """HTTP/2 or 3, which passes for 1.1 too: aiohttp asks `== 1.1` before it streams or looks at `Expect`."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return other in (tuple(self), tuple(HttpVersion11))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(HttpVersion11)


VERSIONS: Final = {
    "1.0": HttpVersion10,
    "1.1": HttpVersion11,
    "2": Multiplexed(2, 0),
    "2.0": Multiplexed(2, 0),
    "3": Multiplexed(3, 0),
    "3.0": Multiplexed(3, 0),
}


class _RequestNames(dict[bytes, istr]):
    """Names of request headers: as in ASGI, to as in aiohttp."""

    def __missing__(self, raw: bytes) -> istr:
        name = istr(raw.decode("utf-8", "surrogateescape"))
        if len(self) < _NAMES and len(raw) <= _NAME:
            self[raw] = name
        return name


REQUEST_NAMES: Final = _RequestNames((str(n).lower().encode(), n) for n in vars(hdrs).values() if isinstance(n, istr))


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


def routed(raw: bytes, root_path: str) -> tuple[str, URL]:
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


learned: Final = lru_cache(maxsize=1024)(routed)
