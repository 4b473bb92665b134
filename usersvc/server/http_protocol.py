"""uvicorn's protocol for HTTP/1, hardened: what a client may cost before, between and behind its requests is bounded.

What the application never sees is told as every other failure is, as a problem. Only ``usersvc serve`` has this; under
another ASGI server, or with ``uvicorn --factory``, that server's own limits and its own words hold.
"""

import asyncio
import logging
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from usersvc.web.middleware.security_headers import HEADERS
from usersvc.web.problems import (
    HeadTooLarge,
    HttpVersionNotSupported,
    MalformedHttp,
    RequestRefused,
    RequestTimeout,
    TargetTooLong,
    TooManyConnections,
    TooManyWaiting,
    TransferCodingNotImplemented,
    problem_response,
)

log = logging.getLogger("usersvc.access")

MAX_HEAD, MAX_FIELDS, MAX_TARGET = 32 * 1024, 100, 8 * 1024
"""Limits of a request: bytes and number of its header and trailer fields together, and bytes of its target (RFC 9110,
section 4.1, asks for at least 8000)."""
VERSIONS = frozenset({"1.0", "1.1"})
"""The versions of HTTP that are served."""
FRAMES = 8
"""The most bytes that a chunked body may take on the wire, as a multiple of its size: one-byte chunks take 6."""
MAX_WAITING = 8
"""How many requests may wait on a connection behind the one in hand; it ends with the answer to the last of them."""
HEAD_TIMEOUT = 10.0
"""How long the head of a request may take, in seconds: the first on a connection from its beginning."""
KEEP_ALIVE = 5
"""How long a connection may be idle between two requests, in seconds."""
WRITE_TIMEOUT = 30.0
"""How long a client may leave what waits for it unread, in seconds."""
LINGER = 2.0
"""How long a connection stays half-open after a refusal, in seconds, so that the client can read the response."""
EVICTION_GRACE = 2.0
"""How long, in seconds, a connection has to be without a request to be evicted before all others, and a client has to
have stopped reading for its connection to be evicted at all."""
EVICTED_AT_ONCE = 0.1
"""The largest share of the connections that is evicted in one go: looking for candidates takes time."""


class HardenedProtocol(HttpToolsProtocol):
    """A connection. uvicorn's ``limit_concurrency`` is how many there may be at once.

    It has one timer at any time: for the head, when no request is in hand, or for what is left unread.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._most = config.limit_concurrency
        # Its own answer to too many would be no problem document.
        self.limit_concurrency = None
        # uvicorn's ``cycle`` is the latest request, which may wait behind the one that is in hand.
        self._in_hand: RequestResponseCycle | None = None
        self._in_head = False
        self._extended = False
        self._piece = self._first_piece = self._received = self._received_at_body = self._body_bytes = 0
        self._head_fields: list[tuple[bytes, bytes]] = []
        self._refused: RequestRefused | None = None
        # When the connection began to wait for its client: for a request, for a body, or for the client to read.
        self._waiting_since = 0.0
        self._stalled: asyncio.TimerHandle | None = None

    # --- a connection begins and ends ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Take the connection if there is room or can be made; the head of the first request has to come in time."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if self._most is not None and len(self.connections) > self._most and not self._make_room():
            self._refused = refusal = TooManyConnections()
            transport.write(_answer(refusal, self.client))
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_TIMEOUT, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        self._unset_keepalive_if_required()
        if self._stalled is not None:
            self._stalled.cancel()
        # uvicorn tells only the latest request, behind which this one may be.
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        """Tell the request in hand that nobody waits for its answer."""
        if self._in_hand is not None and not self._in_hand.response_complete:
            self._in_hand.disconnected = True
            self._in_hand.waiting_for_100_continue = False
            self._in_hand.message_event.set()

    def _make_room(self) -> bool:
        """Evict idle connections or, if there are none, those that wait for their client; return whether any was.

        The connection that has waited longest goes first. A connection whose body makes progress is not spared: one
        byte now and then is progress, too, while the age of a request cannot be forged. A connection is not idle as
        soon as it is open: else a flood of withheld bodies would close each new one before its first request arrives.
        """
        latest = self.loop.time() - EVICTION_GRACE
        others = [other for other in self.connections if isinstance(other, HardenedProtocol) and other is not self]
        candidates = [other for other in others if other._is_idle() and other._waiting_since <= latest]  # noqa: SLF001  # its own
        if not candidates:
            candidates = [other for other in others if other._waits_for_client(latest)]  # noqa: SLF001  # its own
        candidates.sort(key=lambda other: other._waiting_since)  # noqa: SLF001  # its own
        for other in candidates[: max(1, int(len(self.connections) * EVICTED_AT_ONCE))]:
            self.connections.discard(other)
            other.transport.abort()
        return bool(candidates)

    def _is_idle(self) -> bool:
        return self._in_hand is None or self._in_hand.response_complete

    def _waits_for_client(self, latest: float) -> bool:
        """Whether it waits for a request or its body, or the client stopped reading the response at ``latest``."""
        if self._in_hand is None or self._in_hand.response_complete or self._in_hand.more_body:
            return True
        return self._stalled is not None and self._waiting_since <= latest

    # --- what comes in ---

    def data_received(self, data: bytes) -> None:
        """Read, within the limits. Unlike uvicorn's, this leaves the timer alone: only a whole head stops it."""
        if self._refused is not None:
            return
        self._piece = len(data)
        self._received += self._piece
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # It is answered as if it did not ask for one; what follows is of no known protocol.
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(self._refused or MalformedHttp())
        else:
            # What is not body is head, trailer or the framing of chunks, and the parser buffers an incomplete field.
            if self._received > MAX_HEAD + min(FRAMES * self._body_bytes, self._received_at_body):
                self._refuse(HeadTooLarge())

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head = True
        # Of the piece that it begins in, some may belong to the request before: it counts only for a closer look.
        self._first_piece = self._piece
        self._received = self._received_at_body = self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head of a request is complete.

        Raises:
            RequestRefused: it breaks a limit or a rule of HTTP; the parser stops with an error.
        """
        self._in_head = self._extended = False
        self._refused = self._broken_limit() or self._broken_rule()
        if self._refused is not None:
            raise self._refused
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        # uvicorn adds trailer fields to the same list as header fields. They get a list of their own, which is dropped:
        # a proxy that removes or sets a header field need not know it as a trailer field (RFC 9110, section 6.5.1).
        self._head_fields, self.headers = self.headers, []
        if self._is_idle():
            self._in_hand = self.cycle
            self._waiting_since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        """A part of a body has arrived."""
        self._body_bytes += len(body)
        self._received_at_body = self._received
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has arrived with its body and its trailer.

        Raises:
            HeadTooLarge: header and trailer fields are more, or larger, than they may be together.
        """
        if self.headers:
            fields = self._head_fields + self.headers
            if len(fields) > MAX_FIELDS or _size(fields) > MAX_HEAD:
                self._refused = HeadTooLarge()
                raise self._refused
        super().on_message_complete()

    def _broken_limit(self) -> RequestRefused | None:
        if len(self.pipeline) >= MAX_WAITING:
            # uvicorn stops reading while a request waits, but it parses all that it has read, which may be thousands of
            # requests, and reads on after each response.
            return TooManyWaiting()
        if len(self.url) > MAX_TARGET:
            return TargetTooLong()
        # A head that arrived in one small piece need not be measured.
        if len(self.headers) > MAX_FIELDS or (
            self._first_piece + self._received > MAX_HEAD and _size(self.headers) > MAX_HEAD
        ):
            return HeadTooLarge()
        return None

    def _broken_rule(self) -> RequestRefused | None:
        version = self.parser.get_http_version()
        if version not in VERSIONS:
            # The parser takes a request line without a version for HTTP/0.9.
            return MalformedHttp() if version == "0.9" else HttpVersionNotSupported()
        hosts, unknown_expectation = 0, False
        codings: list[bytes] = []
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings += [coding.strip().lower() for coding in value.split(b",")]
            elif name == b"expect" and value.lower() != b"100-continue":
                unknown_expectation = True
        # Where chunked is not the last one, or comes twice, the parser reports malformed HTTP (RFC 9112, section 6.3).
        if codings and codings[-1] == b"chunked" and not {b"chunked", b""}.issuperset(codings):
            return TransferCodingNotImplemented()
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            # RFC 9112, section 3.2
            return MalformedHttp("A request has to have one Host header.")
        if not self.url.startswith((b"/", b"http://", b"https://")) and self.url != b"*":
            return MalformedHttp("The request target has none of the allowed forms (RFC 9112, section 3.2).")
        if unknown_expectation:
            # It may be ignored (RFC 9110, section 10.1.1); aiohttp would refuse it without a problem document.
            self.headers[:] = [field for field in self.headers if field[0] != b"expect"]
        return None

    # --- what goes out, and what takes too long ---

    def on_response_complete(self) -> None:
        """Go on to the next request that waits, or be idle; close if the body of the last one is still incomplete.

        How long the rest of an unread body is waited for is up to the application, and over: see `usersvc.asgi`.
        """
        if self._in_hand is not None and self._in_hand.more_body:
            self.transport.close()
        if self.transport.is_closing() and self._stalled is None:
            # Closing waits until all is sent.
            self._stalled = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)
        if self.pipeline:
            self._in_hand = self.pipeline[-1][0]
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """The next head has not come in time."""
        if self.transport.is_closing():
            return
        if self._in_head and not self._extended and self.cycle is not None:
            # It began late, but it began: it has as long as a first one.
            self._extended = True
            self.timeout_keep_alive_task = self.loop.call_later(HEAD_TIMEOUT, self.timeout_keep_alive_handler)
        elif self._in_head:
            self._refuse(RequestTimeout("The head of the request did not arrive in time."))
        elif self.transport.get_write_buffer_size():
            # Closing would wait for somebody who does not read.
            self.transport.abort()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than the application writes."""
        super().pause_writing()
        self._waiting_since = self.loop.time()
        if self._stalled is None:
            self._stalled = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _refuse(self, refusal: RequestRefused) -> None:
        """Answer what the application does not get to see, and close."""
        self._refused = refusal
        self._unset_keepalive_if_required()
        if self.pipeline and self.cycle.more_body:
            # The latest one that waits is what is refused.
            self.pipeline.popleft()
        in_hand = None if self._is_idle() else self._in_hand
        if in_hand is not None and not (in_hand is self.cycle and in_hand.more_body):
            # It is a later request that is refused: those before it are to be answered first, and then it ends.
            last = self.pipeline[0][0] if self.pipeline else in_hand
            last.keep_alive = False
            self.flow.pause_reading()
        elif in_hand is not None and in_hand.response_started:
            # An answer is on its way, and must not look as if it were complete.
            self.transport.abort()
        else:
            # The application may wait for more of the body, and must not answer as well.
            self._leave()
            self.transport.write(_answer(refusal, self.client))
            # Closed while more comes in, the connection would be reset, and the answer perhaps lost: so what comes is
            # thrown away until the client closes (RFC 9112, section 9.6).
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.abort)


def _size(fields: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in fields)


def _answer(refusal: RequestRefused, client: tuple[str, int] | None) -> bytes:
    request_id = str(uuid4())
    response = problem_response(refusal, request_id)
    headers = {
        "Date": formatdate(usegmt=True),
        "X-Request-ID": request_id,
        **dict(HEADERS),
        **response.headers,
        "Connection": "close",
    }
    assert isinstance(response.body, bytes)  # noqa: S101  # a problem's always is
    headers["Content-Length"] = str(len(response.body))
    log.info(
        "refused before it was a request",
        extra={"status": response.status, "client": client[0] if client else None, "request_id": request_id},
    )
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name.lower()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + response.body
