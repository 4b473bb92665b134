"""Limits on connections, request heads, bodies and idle time; other clients are served meanwhile."""

import gzip
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.api import RawResponse, person, read_responses
from tests.e2e.launch import SHORT_TIMES
from tests.e2e.server import DEADLINE, SERVE, UVICORN, Service, StartService, running
from usersvc.server.http_protocol import LINGER, MAX_WAITING

HOST = b"Host: test\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
JSON = b"Content-Type: application/json\r\n"
TOKEN = "x" * 22
POST = b"POST /register HTTP/1.1\r\n" + HOST + JSON
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSING = LIVEZ.replace(HOST, HOST + b"Connection: close\r\n")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose time limits are half a second."""
    with running(tmp_path_factory.mktemp("impatient"), {"USERSVC_ADMIN_TOKEN": TOKEN}, SHORT_TIMES) as service:
        yield service


def assert_refused(response: bytes, status: int, code: str) -> RawResponse:
    """Check that the last response is this problem document."""
    *_, refused = read_responses(response)
    document = json.loads(refused.rest)
    assert (refused.status, document["status"], document["code"]) == (status, status, code)
    assert set(document) >= {"type", "title", "detail", "instance"}
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["x-content-type-options"] == "nosniff"
    assert refused.headers["x-request-id"] in document["instance"]
    return refused


def read_all(connection: socket.socket) -> bytes:
    response = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            response += piece
    return response


def read_next(connection: socket.socket) -> bytes:
    """One response, whether or not the connection stays open afterwards."""
    stream = connection.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += stream.readline()
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    return head + stream.read(int(length[1]))


@contextmanager
def connected(service: Service, *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(service.address, DEADLINE) as connection:
        for piece in sent:
            connection.sendall(piece)
        yield connection


MALFORMED = {
    "no request": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunked": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "odd length": POST + b"Content-Length: 2x\r\n\r\n{}",
    "bad chunk": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "NUL in a header": b"GET /livez HTTP/1.1\r\n" + HOST + b"X-Request-ID: a\0b\r\n\r\n",
    "space in a name": b"GET /livez HTTP/1.1\r\n" + HOST + b"Odd Name: x\r\n\r\n",
    "no version": b"GET /livez\r\n" + HOST + b"\r\n",
    "unknown method": b"BREW /livez HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("garbage", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_http_gets_a_problem_document(service: Service, garbage: bytes) -> None:
    refused = assert_refused(service.talk(garbage), 400, "malformed-http")
    assert refused.headers["connection"] == "close"


def request_with(version: bytes, fields: bytes) -> bytes:
    return b"POST /register " + version + b"\r\n" + HOST + JSON + fields + b"\r\n0\r\n\r\n"


CODING, VERSION, MALFORMED_HTTP = (
    (501, "transfer-coding-not-implemented"),
    (505, "http-version-not-supported"),
    (400, "malformed-http"),
)


@pytest.mark.parametrize(
    ("version", "fields", "problem"),
    [
        (b"HTTP/1.1", b"Transfer-Encoding: gzip, chunked\r\n", CODING),
        (b"HTTP/1.1", b"Transfer-Encoding: identity, chunked\r\n", CODING),
        (b"HTTP/1.1", b"Transfer-Encoding: gzip\r\nTransfer-Encoding: Chunked\r\n", CODING),
        (b"HTTP/1.1", b"Transfer-Encoding: chunked, gzip\r\n", MALFORMED_HTTP),
        (b"HTTP/1.1", b"Transfer-Encoding: chunked, chunked\r\n", MALFORMED_HTTP),
        (b"HTTP/1.1", b"Transfer-Encoding: chunked\r\n" * 2, MALFORMED_HTTP),
        (b"HTTP/2.0", b"", VERSION),
        (b"HTTP/0.9", b"", MALFORMED_HTTP),
        (b"HTTP/7.7", b"", MALFORMED_HTTP),
        # Known codings in any spelling reach the application, which misses the JSON.
        (b"HTTP/1.1", b"Transfer-Encoding:CHUNKED\r\nConnection: close\r\n", (400, "malformed-json")),
        (b"HTTP/1.1", b"Transfer-Encoding: , chunked \r\nConnection: close\r\n", (400, "malformed-json")),
    ],
)
def test_unknown_codings_and_versions_are_refused(
    service: Service, version: bytes, fields: bytes, problem: tuple[int, str]
) -> None:
    request = b"POST /register " + version + b"\r\n" + HOST + JSON + fields + b"\r\n0\r\n\r\n"
    assert_refused(service.talk(request), *problem)


def test_http_1_0_needs_no_host(service: Service) -> None:
    assert service.talk(b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


FIELDS = b"".join(b"X-%d: y\r\n" % number for number in range(99))
HEADS = {
    "one long field": (b"X-Long: " + b"y" * 40_000 + b"\r\n", 431, "head-too-large"),
    "long fields": (b"".join(b"X-%d: %s\r\n" % (number, b"y" * 1000) for number in range(50)), 431, "head-too-large"),
    "many fields": (FIELDS + b"X-99: y\r\n", 431, "head-too-large"),
    "megabytes": (b"X-Long: " + b"y" * 3_000_000 + b"\r\n", 431, "head-too-large"),
    "as many as there may be": (FIELDS, 200, None),
    "as long as it may be": (b"X-Long: " + b"y" * 30_000 + b"\r\n", 200, None),
}


@pytest.mark.parametrize(("fields", "status", "code"), HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("pieces", [1, 7])
def test_head_is_limited(service: Service, fields: bytes, status: int, code: str | None, pieces: int) -> None:
    request = b"GET /livez HTTP/1.1\r\n" + HOST + fields + b"\r\n"
    length = -(-len(request) // pieces)
    with connected(service) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for begin in range(0, len(request), length):
                connection.sendall(request[begin : begin + length])
        if code is None:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        else:
            assert_refused(read_all(connection), status, code)


def test_target_is_limited(service: Service) -> None:
    for target in (b"/" + b"x" * 9000, b"/users?email=" + b"x" * 20_000):
        response = service.talk(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        assert_refused(response, 414, "target-too-long")


def test_endless_trailers_and_chunk_extensions_are_refused(service: Service) -> None:
    endless = {
        "trailers": b"0\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)),
        "one trailer": b"0\r\nX-Long: " + b"y" * 1_000_000,
        "extensions": b"1;" + b"x=y;" * 250_000,
    }
    for rest in endless.values():
        with connected(service) as connection:
            with suppress(ConnectionError):
                connection.sendall(CHUNKED)
                # In pieces, so that they are read one by one.
                for begin in range(0, len(rest), 8192):
                    connection.sendall(rest[begin : begin + 8192])
            response = read_all(connection)
        assert response.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), response


@pytest.fixture(
    scope="module", params=[SERVE, (*UVICORN, "--port", "0", "--http", "usersvc.server.http_protocol:HardenedProtocol")]
)
def guarded(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service that requires a token and trusts a proxy on this host."""
    settings = {"USERSVC_ADMIN_TOKEN": TOKEN, "USERSVC_TRUSTED_PROXIES": "127.0.0.1", "USERSVC_LOG_FORMAT": "json"}
    with running(tmp_path_factory.mktemp("guarded"), settings, request.param) as service:
        yield service


@pytest.mark.parametrize("pieces", [1, 2])
def test_trailer_fields_are_dropped(guarded: Service, pieces: int) -> None:
    client, forged = f"203.0.113.{pieces}", f"198.51.100.{pieces}"
    head = b"GET /users HTTP/1.1\r\n" + HOST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n"
    head += f"X-Forwarded-For: {client}\r\n\r\n1\r\nx\r\n".encode()
    trailer = f"Authorization: Bearer {TOKEN}\r\nX-Forwarded-For: {forged}\r\nX-Request-ID: forged\r\n\r\n".encode()
    with connected(
        guarded, *([head + b"0\r\n" + trailer] if pieces == 1 else [head, b"0\r\n" + trailer])
    ) as connection:
        refused = assert_refused(read_all(connection), 401, "unauthorized")
    assert refused.headers["x-request-id"] != "forged"
    guarded.wait_for_output(f'"client":"{client}"')
    assert forged not in guarded.output


TRAILERS = {
    "as many as there may be": (b"X-1: y\r\n" * 97, 400, "malformed-json"),
    "one more": (b"X-1: y\r\n" * 98, 431, "head-too-large"),
    "many": (b"X-1: y\r\n" * 2500, 431, "head-too-large"),
    "long": (b"X-1: " + b"y" * 33_000 + b"\r\n", 431, "head-too-large"),
}


@pytest.mark.parametrize(("trailer", "status", "code"), TRAILERS.values(), ids=TRAILERS.keys())
def test_trailer_fields_count_as_header_fields(service: Service, trailer: bytes, status: int, code: str) -> None:
    with connected(service, CHUNKED + b"1\r\n{\r\n0\r\n" + trailer + b"\r\n") as connection:
        assert_refused(read_next(connection), status, code)


def test_body_of_one_byte_chunks_is_accepted(service: Service) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(person()).encode())
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert service.talk(head + chunks + b"0\r\nX-Trailer: x\r\n\r\n").startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("too_many", [0, 1, 20])
def test_pipelined_requests_are_limited(service: Service, too_many: int) -> None:
    # The first is being served, the others wait; all arrive in one piece.
    requests = LIVEZ * (MAX_WAITING + too_many) + (LIVEZ if too_many else CLOSING)
    responses = read_responses(service.talk(requests))
    assert [response.status for response in responses] == [200] * (MAX_WAITING + 1)
    assert [response.headers.get("connection") for response in responses] == [None] * MAX_WAITING + ["close"]


@pytest.mark.parametrize("good", [1, 3])
@pytest.mark.parametrize("refused", [b"nonsense\r\n\r\n", CHUNKED + b"zz\r\n"])
def test_requests_before_a_refused_one_get_their_responses(service: Service, good: int, refused: bytes) -> None:
    responses = read_responses(service.talk(LIVEZ * good + refused))
    assert [response.status for response in responses] == [200] * good
    assert responses[-1].headers["connection"] == "close"


def test_body_with_too_large_a_length_is_refused_unread(impatient: Service) -> None:
    with connected(impatient, POST + b"Content-Length: 1000000000\r\n\r\n") as sent:
        assert_refused(read_next(sent), 413, "body-too-large")


def test_compressed_body_is_limited_by_its_decompressed_size(service: Service) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    head = POST + b"Content-Encoding: gzip\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    response = service.talk(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(bomb), bomb))
    assert_refused(response, 413, "body-too-large")


# --- time ---


def test_silent_connection_is_closed_silently(impatient: Service) -> None:
    with connected(impatient) as connection:
        assert read_all(connection) == b""


@pytest.mark.parametrize("first", [b"", LIVEZ], ids=["the first", "a later one"])
def test_slow_head_gets_408(impatient: Service, first: bytes) -> None:
    with connected(impatient, first, b"GET /livez HT") as connection:
        assert_refused(read_all(connection), 408, "request-timeout")


@pytest.mark.parametrize(
    ("begin", "dribble"),
    [(LIVEZ + b"G", b"E"), (LIVEZ.replace(HOST, HOST + b"Content-Length: 1000000\r\n"), b"x")],
    ids=["head", "unread body"],
)
def test_dribbling_does_not_keep_a_connection_open(impatient: Service, begin: bytes, dribble: bytes) -> None:
    began = time.monotonic()
    with connected(impatient, begin) as connection, suppress(ConnectionError):
        connection.settimeout(0.05)
        while time.monotonic() - began < DEADLINE:
            connection.sendall(dribble)
            with suppress(TimeoutError):
                if not connection.recv(65536):
                    break
    assert time.monotonic() - began < DEADLINE


@pytest.mark.parametrize(
    "unfinished",
    [b"Content-Length: 100\r\n\r\n", b'Content-Length: 100\r\n\r\n{"email"', b"Transfer-Encoding: chunked\r\n\r\n",
     b'Transfer-Encoding: chunked\r\n\r\n8\r\n{"email"\r\n'],
)  # fmt: skip
def test_unfinished_body_gets_408(impatient: Service, unfinished: bytes) -> None:
    with connected(impatient, POST + unfinished) as connection:
        assert_refused(read_next(connection), 408, "request-timeout")


def test_a_connection_lasts_two_seconds_behind_the_answer_to_an_unread_body(service: Service) -> None:
    incomplete = b" HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n12345"
    began = time.monotonic()
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(connected(service, target, incomplete))
            for target in (b"GET /livez", b"GET /nowhere", b"DELETE /users", b"POST /register", b"GET /docs")
        ]
        responses = [read_responses(read_all(connection)) for connection in waiting]
    assert [[response.status for response in each] for each in responses] == [[200], [404], [405], [415], [200]]
    # aiohttp would wait for ten.
    assert LINGER <= time.monotonic() - began < 4 * LINGER


def test_who_does_not_read_the_answers_is_cut_off(impatient: Service) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE)
        connection.connect(impatient.address)
        # The responses are larger than all buffers.
        asset = b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        connection.sendall(asset * (MAX_WAITING + 1))
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < DEADLINE:
                connection.sendall(b"x")
                time.sleep(0.05)
    assert time.monotonic() - began < DEADLINE


# --- number ---


@contextmanager
def many(service: Service, how_many: int, send: Callable[[socket.socket], None]) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(how_many):
            connection = stack.enter_context(socket.create_connection(service.address, DEADLINE))
            send(connection)
            opened.append(connection)
        yield opened


def test_slow_clients_do_not_lock_others_out(start: StartService) -> None:
    service = start(USERSVC_MAX_CONNECTIONS="50")
    with many(service, 300, lambda connection: connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")) as slow:
        for _ in range(20):
            assert service.talk(CLOSING).startswith(b"HTTP/1.1 200 ")
        # The oldest have been closed to make room.
        assert read_all(slow[0]) == b""


@pytest.mark.parametrize(
    "unread",
    [
        b"GET /livez HTTP/1.1\r\n" + HOST + b"Content-Length: 10\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST /register HTTP/1.1\r\n" + HOST + JSON + b"Content-Length: 100\r\n\r\n{",
    ],
    ids=["after the response", "chunked", "before the response"],
)
def test_clients_that_withhold_a_body_do_not_lock_others_out(start: StartService, unread: bytes) -> None:
    service = start(USERSVC_MAX_CONNECTIONS="50")
    with many(service, 51, lambda connection: connection.sendall(unread)) as withholding:
        for _ in range(20):
            assert service.talk(CLOSING).startswith(b"HTTP/1.1 200 ")
        assert read_all(withholding[0]).count(b"HTTP/1.1") <= 1


def test_connection_is_refused_while_all_others_are_busy(start: StartService) -> None:
    # At this cost the hashes take longer than the test.
    service = start(USERSVC_MAX_CONNECTIONS="5", USERSVC_BCRYPT_COST="14", USERSVC_HASH_WORKERS="1")
    body = json.dumps(person()).encode()
    begun = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with many(service, 5, lambda connection: connection.sendall(begun)) as at_work:
        for connection in at_work:
            assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
            # A request with a complete body is not evicted.
            connection.sendall(body)
        refused = assert_refused(service.talk(b""), 503, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
    deadline = time.monotonic() + DEADLINE
    while not service.talk(b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 "):
        assert time.monotonic() < deadline


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="files are counted in Linux's /proc")
def test_open_file_limit_covers_the_connections(start: StartService) -> None:
    service = start(USERSVC_MAX_CONNECTIONS="2000")
    limits = Path(f"/proc/{service._process.pid}/limits").read_text()
    [soft] = re.findall(r"Max open files\s+(\d+)", limits)
    assert int(soft) >= 2256
