"""Response headers, from aiohttp's form to ASGI's."""

import re
from typing import Final

from multidict import CIMultiDict

from usersvc.asgi.scopes import RawHeaders

_NAMES: Final = 1024  # header names are learned, but not without end
_NAME: Final = 64  # characters of a header name that is learned
_VALUES: Final = 16  # of one response header are learned
_VALUE: Final = 128  # characters of one
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # RFC 9110, section 5.5
_SERVERS_OWN: Final = frozenset(
    ("connection", "date", "keep-alive", "proxy-connection", "server", "te", "trailer", "transfer-encoding", "upgrade")
)
TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
CLOSE: Final = (b"connection", b"close")


class _ResponseNames(dict[str, bytes]):
    """Names of response headers: as in aiohttp, to as in ASGI; empty when it is the server that sends the header."""

    def __missing__(self, name: str) -> bytes:
        lower = name.lower()
        raw = b"" if lower in _SERVERS_OWN else _checked(lower)
        if len(self) < _NAMES and len(name) <= _NAME:
            self[name] = raw
        return raw


_RESPONSE_NAMES: Final = _ResponseNames()
_RESPONSE_HEADERS: Final[dict[tuple[str, str], tuple[bytes, bytes]]] = {}  # those that come again and again
# How many values of a header have been learned. A cookie may be a secret, which nothing is to keep.
_VALUES_OF: Final[dict[bytes, int]] = {b"set-cookie": _VALUES}


def _checked(text: str) -> bytes:
    if _FORBIDDEN.search(text):
        raise ValueError("there is a control character in a response header")
    return text.encode("utf-8", "ignore")  # surrogates are left out, as aiohttp does


def encode_headers(headers: "CIMultiDict[str]") -> RawHeaders:
    """Response headers as ASGI wants them, less those that are the server's.

    Raises:
        ValueError: a header has a control character, which could begin another header of an attacker's choice.
    """
    encoded: RawHeaders = []
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
