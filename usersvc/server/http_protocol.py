"""uvicorn's HTTP/1 protocol with limits on connections, request heads, idle time and unread responses.

Requests that are refused before the application sees them get problem documents too. `usersvc serve` uses this
protocol; other servers have limits and error responses of their own.
"""

import asyncio
import logging
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from uuid import uuid4

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from usersvc.web import problems
from usersvc.web.middleware.security_headers import HEADERS

log = logging.getLogger("usersvc.access")

MAX_HEAD, MAX_FIELDS, MAX_TARGET = 32 * 1024, 100, 8 * 1024
"""Limits of a request: bytes and number of its header and trailer fields together, and bytes of its target (RFC 9110,
section 4.1, requires at least 8000)."""
FRAMES = 8  # times its size that a chunked body may take on the wire at most: one-byte chunks take 6
MAX_WAITING = 8  # pipelined requests that may wait on a connection, which is closed after the last of them

# Times are in seconds.
HEAD_TIMEOUT = 10.0  # for the head of a request: the first on a connection from its beginning
KEEP_ALIVE = 5  # between two requests
WRITE_TIMEOUT = 30.0  # how long a client may leave a response unread
LINGER = 2.0  # how long a connection stays half-open after a refusal, so that the client can read the response
EVICTION_GRACE = 2.0  # idle for so long, it is evicted first; if its client stopped reading, only after so long
EVICTED_AT_ONCE = 0.1  # the largest share of the connections evicted at once: looking for candidates takes time


class HardenedProtocol(HttpToolsProtocol):
    """A connection, of at most uvicorn's ``limit_concurrency`` at a time.

    It has one timer at any time: for the next head, or for a response that the client does not read.
    """

    _current: RequestResponseCycle | None = None
    """The request whose response is next; uvicorn's ``cycle`` is the latest, which may wait behind this one."""
    _in_head = _extended = False
    _received = _received_at_body = _body_bytes = 0
    _head_fields: Sequence[tuple[bytes, bytes]] = ()
    _refused: problems.RequestRefused | None = None
    _waiting_since = 0.0
    """When the connection began to wait for its client: for a request, for a body, or for the client to read."""
    _write_timer: asyncio.TimerHandle | None = None

    # --- connecting and disconnecting ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        # uvicorn's own response to too many connections is not a problem document.
        limit, self.limit_concurrency = self.config.limit_concurrency, None
        if limit is not None and len(self.connections) > limit and not self._evict():
            self._refused = refusal = problems.TooManyConnections()
            transport.write(_refusal_response(refusal, self.client))
            transport.close()
            return
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_TIMEOUT, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        if self._write_timer is not None:
            self._write_timer.cancel()
        # uvicorn notifies only the latest request, which may wait behind the current one.
        self._disconnect_current()
        super().connection_lost(exc)

    def _disconnect_current(self) -> None:
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.waiting_for_100_continue = False
            self._current.message_event.set()

    def _evict(self) -> bool:
        """Close idle connections or, if there are none, those that wait for their client; whether any was closed.

        The connection that has waited longest goes first, even if its body makes progress: one byte now and then is
        progress too, while the age of a request cannot be forged. A new connection does not count as idle: otherwise
        clients that withhold bodies would close each new one before its first request arrives.
        """
        latest = self.loop.time() - EVICTION_GRACE
        others = [other for other in self.connections if isinstance(other, HardenedProtocol) and other is not self]
        candidates = [other for other in others if other._is_idle() and other._waiting_since <= latest]  # noqa: SLF001  # same class
        if not candidates:
            candidates = [other for other in others if other._waits_for_client(latest)]  # noqa: SLF001  # same class
        candidates.sort(key=lambda other: other._waiting_since)  # noqa: SLF001  # same class
        for other in candidates[: max(1, int(len(self.connections) * EVICTED_AT_ONCE))]:
            self.connections.discard(other)
            other.transport.abort()
        return bool(candidates)

    def _is_idle(self) -> bool:
        return self._current is None or self._current.response_complete

    def _waits_for_client(self, latest: float) -> bool:
        """Whether it waits for a request or its body, or the client stopped reading the response before ``latest``."""
        stopped_reading = self._write_timer is not None and self._waiting_since <= latest
        return self._is_idle() or stopped_reading or (self._current is not None and self._current.more_body)

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        """Parse data within the limits. Unlike uvicorn's method, this leaves the timer to `on_headers_complete`."""
        if self._refused is not None:
            return
        self._received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request is served without the upgrade; what follows it may be of another protocol.
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(self._refused or problems.MalformedHttp())
        else:
            # What is not body is head, trailer or the framing of chunks, and the parser buffers an incomplete field.
            if self._received > MAX_HEAD + min(FRAMES * self._body_bytes, self._received_at_body):
                self._refuse(problems.HeadTooLarge())

    def on_message_begin(self) -> None:
        self._in_head = True
        self._received = self._received_at_body = self._body_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = self._extended = False
        self._refused = self._refusal()
        if self._refused is not None:
            raise self._refused  # stops the parser with an error
        self._unset_keepalive_if_required()
        super().on_headers_complete()
        # uvicorn appends trailer fields to the list of header fields. They get a list of their own, which is dropped: a
        # proxy that removes or sets a header field need not know it as a trailer field (RFC 9110, section 6.5.1).
        self._head_fields, self.headers = self.headers, []
        if self._is_idle():
            self._current = self.cycle
            self._waiting_since = self.loop.time()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._received_at_body = self._received
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.headers and _is_too_large([*self._head_fields, *self.headers]):
            self._refused = problems.HeadTooLarge()
            raise self._refused
        super().on_message_complete()

    def _refusal(self) -> problems.RequestRefused | None:  # noqa: PLR0911  # one return for each rule
        if len(self.pipeline) >= MAX_WAITING:
            # uvicorn stops reading while a request waits, but parses all that it has read: maybe thousands of requests.
            return problems.TooManyWaiting()
        if len(self.url) > MAX_TARGET:
            return problems.TargetTooLong()
        if _is_too_large(self.headers):
            return problems.HeadTooLarge()
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            # The parser takes a request line without a version for HTTP/0.9.
            return problems.MalformedHttp() if version == "0.9" else problems.HttpVersionNotSupported()
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if b"transfer-encoding" in names:
            lines = [value for name, value in self.headers if name == b"transfer-encoding"]
            codings = [coding.strip().lower() for coding in b",".join(lines).split(b",")]
            # The parser refuses requests in which chunked is not last or comes twice (RFC 9112, section 6.3).
            if codings[-1] == b"chunked" and not {b"chunked", b""}.issuperset(codings):
                return problems.TransferCodingNotImplemented()
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            # RFC 9112, section 3.2
            return problems.MalformedHttp("A request has to have one Host header.")
        if not self.url.startswith((b"/", b"http://", b"https://")) and self.url != b"*":
            return problems.MalformedHttp("The request target has none of the allowed forms (RFC 9112, section 3.2).")
        if any(name == b"expect" and value.lower() != b"100-continue" for name, value in self.headers):
            # It may be ignored (RFC 9110, section 10.1.1); aiohttp would refuse it without a problem document.
            self.headers[:] = [field for field in self.headers if field[0] != b"expect"]
        return None

    # --- responses and timers ---

    def on_response_complete(self) -> None:
        if self._current is not None and self._current.more_body:
            self.transport.close()  # the application has waited for the rest of the body already
        if self.transport.is_closing():
            self._start_write_timer()  # closing waits until all is sent
        if self.pipeline:
            self._current = self.pipeline[-1][0]
        self._waiting_since = self.loop.time()
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_head and not self._extended and self.cycle is not None:
            # A head that began while the connection was idle has as much time as a first one.
            self._extended = True
            self.timeout_keep_alive_task = self.loop.call_later(HEAD_TIMEOUT, self.timeout_keep_alive_handler)
        elif self._in_head:
            self._refuse(problems.RequestTimeout("The head of the request did not arrive in time."))
        elif self.transport.get_write_buffer_size():
            # Closing would wait for a client that does not read.
            self.transport.abort()
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._waiting_since = self.loop.time()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT, self.transport.abort)

    def _refuse(self, refusal: problems.RequestRefused) -> None:
        self._refused = refusal
        self._unset_keepalive_if_required()
        if self.pipeline and self.cycle.more_body:
            # The latest waiting request is the refused one.
            self.pipeline.popleft()
        current = None if self._is_idle() else self._current
        if current is not None and not (current is self.cycle and current.more_body):
            # The refused request is a later one: those before it get their responses, and the connection is closed.
            last = self.pipeline[0][0] if self.pipeline else current
            last.keep_alive = False
            self.flow.pause_reading()
        elif current is not None and current.response_started:
            # The response that has begun must not look complete.
            self.transport.abort()
        else:
            # The application may be waiting for more of the body, and must not respond as well.
            self._disconnect_current()
            self.transport.write(_refusal_response(refusal, self.client))
            # Closed while data arrives, the connection would be reset and the response perhaps lost. So data is dropped
            # until the client closes (RFC 9112, section 9.6).
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.abort)


def _is_too_large(fields: list[tuple[bytes, bytes]]) -> bool:
    return len(fields) > MAX_FIELDS or sum(len(name) + len(value) + 4 for name, value in fields) > MAX_HEAD


def _refusal_response(refusal: problems.RequestRefused, client: tuple[str, int] | None) -> bytes:
    request_id = str(uuid4())
    response = problems.problem_response(refusal, request_id)
    body = cast("bytes", response.body)
    headers = {
        "Date": formatdate(usegmt=True),
        "X-Request-ID": request_id,
        **dict(HEADERS),
        **response.headers,
        "Connection": "close",
        "Content-Length": str(len(body)),
    }
    log.info(
        "refused before it was a request",
        extra={"status": response.status, "client": client[0] if client else None, "request_id": request_id},
    )
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name.lower()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
