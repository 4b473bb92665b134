"""Limits on connections, request heads, bodies and idle time; other clients are served meanwhile."""

import gzip
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.api import RawResponse, person, read_responses
from tests.e2e.launch import SHORT_TIMES
from tests.e2e.server import DEADLINE, SERVE, UVICORN, Service, StartService, running
from usersvc.server.http_protocol import MAX_WAITING

HOST = b"Host: test\r\n"
LIVEZ = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
TOKEN = "x" * 22
POST = b"POST /register HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
CHUNKED = POST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
CLOSING = LIVEZ.replace(HOST, HOST + CLOSE)


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


def get(fields: bytes, target: bytes = b"/livez") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + CLOSE + fields + b"\r\n"


def post(fields: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return POST.replace(b"HTTP/1.1", version) + CLOSE + fields + b"\r\n0\r\n\r\n"


def with_trailer(trailer: bytes) -> bytes:
    return CHUNKED + b"1\r\n{\r\n0\r\n" + trailer + b"\r\n"


def numbered(count: int, value: bytes) -> bytes:
    return b"".join(b"X-%d: %s\r\n" % (number, value) for number in range(count))


BOMB = gzip.compress(b" " * 50_000_000)
CODING = b"Transfer-Encoding: "
REFUSED = {
    (400, "malformed-http"): {
        "no request": b"hello\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
        "no host": b"GET /livez HTTP/1.1\r\n\r\n",
        "two hosts": get(HOST),
        "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        "length and chunked": post(b"Content-Length: 2\r\n" + CODING + b"chunked\r\n"),
        "odd length": POST + b"Content-Length: 2x\r\n\r\n{}",
        "bad chunk": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
        "NUL in a header": get(b"X-Request-ID: a\0b\r\n"),
        "space in a name": get(b"Odd Name: x\r\n"),
        "no version": b"GET /livez\r\n" + HOST + b"\r\n",
        "unknown method": b"BREW /livez HTTP/1.1\r\n" + HOST + b"\r\n",
        "chunked not last": post(CODING + b"chunked, gzip\r\n"),
        "chunked twice": post(CODING + b"chunked, chunked\r\n"),
        "chunked in two fields": post((CODING + b"chunked\r\n") * 2),
        "HTTP/0.9": post(b"", b"HTTP/0.9"),
        "HTTP/7.7": post(b"", b"HTTP/7.7"),
    },
    (501, "transfer-coding-not-implemented"): {
        "gzip": post(CODING + b"gzip, chunked\r\n"),
        "identity": post(CODING + b"identity, chunked\r\n"),
        "gzip in another field": post(CODING + b"gzip\r\n" + CODING + b"Chunked\r\n"),
    },
    (505, "http-version-not-supported"): {"HTTP/2.0": post(b"", b"HTTP/2.0")},
    (400, "malformed-json"): {  # the request has reached the application
        "upper-case coding": post(b"Transfer-Encoding:CHUNKED\r\n"),
        "empty coding": post(CODING + b", chunked \r\n"),
        "as many fields with trailers as allowed": with_trailer(b"X-1: y\r\n" * 96),
    },
    (431, "head-too-large"): {
        "one long field": get(b"X-Long: " + b"y" * 40_000 + b"\r\n"),
        "long fields": get(numbered(50, b"y" * 1000)),
        "one field too many": get(numbered(99, b"y")),
        "megabytes": get(b"X-Long: " + b"y" * 3_000_000 + b"\r\n"),
        "one trailer field too many": with_trailer(b"X-1: y\r\n" * 97),
        "endless chunk extensions": CHUNKED + b"1;" + b"x=y;" * 250_000,
        "many trailer fields": with_trailer(b"X-1: y\r\n" * 2500),
        "a long trailer field": with_trailer(b"X-1: " + b"y" * 33_000 + b"\r\n"),
    },
    (414, "target-too-long"): {
        "path": get(b"", target=b"/" + b"x" * 9000),
        "query": get(b"", target=b"/users?email=" + b"x" * 20_000),
    },
    (413, "body-too-large"): {
        "decompressed": CHUNKED.replace(CLOSE, CLOSE + b"Content-Encoding: gzip\r\n")
        + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BOMB), BOMB),
    },
}


@pytest.mark.parametrize(
    ("problem", "request_"),
    [
        pytest.param(problem, request, id=f"{problem[1]}-{name}")
        for problem, requests in REFUSED.items()
        for name, request in requests.items()
    ],
)
def test_refused_request_gets_a_problem_document(service: Service, problem: tuple[int, str], request_: bytes) -> None:
    refused = assert_refused(service.talk(request_), *problem)
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize(
    "accepted",
    [
        b"GET /livez HTTP/1.0\r\n\r\n",
        get(numbered(98, b"y")),
        get(b"X-Long: " + b"y" * 30_000 + b"\r\n"),
        CHUNKED
        + b"".join(b"1\r\n%c\r\n" % byte for byte in json.dumps(person()).encode())
        + b"0\r\nX-Trailer: x\r\n\r\n",
    ],
    ids=["HTTP/1.0 without a host", "as many fields as allowed", "a head as long as allowed", "one-byte chunks"],
)
def test_requests_within_the_limits_are_served(service: Service, accepted: bytes) -> None:
    assert service.talk(accepted).startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 "))


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
    head = b"GET /users HTTP/1.1\r\n" + HOST + CLOSE + b"Transfer-Encoding: chunked\r\n"
    head += f"X-Forwarded-For: {client}\r\n\r\n1\r\nx\r\n".encode()
    trailer = (
        f"0\r\nAuthorization: Bearer {TOKEN}\r\nX-Forwarded-For: {forged}\r\nX-Request-ID: forged\r\n\r\n".encode()
    )
    with connected(guarded, *([head + trailer] if pieces == 1 else [head, trailer])) as connection:
        refused = assert_refused(read_all(connection), 401, "unauthorized")
    assert refused.headers["x-request-id"] != "forged"
    guarded.wait_for_output(f'"client":"{client}"')
    assert forged not in guarded.output


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
    [b"Content-Length: 100\r\n\r\n", b'Transfer-Encoding: chunked\r\n\r\n8\r\n{"email"\r\n'],
)
def test_unfinished_body_gets_408(impatient: Service, unfinished: bytes) -> None:
    with connected(impatient, POST + unfinished) as connection:
        assert_refused(read_next(connection), 408, "request-timeout")


def test_client_that_does_not_read_is_disconnected(impatient: Service) -> None:
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


def test_slow_clients_do_not_lock_others_out(start: StartService) -> None:
    service = start(USERSVC_MAX_CONNECTIONS="50")
    with ExitStack() as stack:
        slow = [stack.enter_context(connected(service, b"GET /livez HTTP/1.1\r\nX-Slow: ")) for _ in range(51)]
        for _ in range(20):
            assert service.talk(CLOSING).startswith(b"HTTP/1.1 200 ")
        # The oldest has been closed.
        assert read_all(slow[0]).count(b"HTTP/1.1") <= 1


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="files are counted in Linux's /proc")
def test_open_file_limit_covers_the_connections(start: StartService) -> None:
    service = start(USERSVC_MAX_CONNECTIONS="2000")
    limits = Path(f"/proc/{service._process.pid}/limits").read_text()
    [soft] = re.findall(r"Max open files\s+(\d+)", limits)
    assert int(soft) >= 2256
