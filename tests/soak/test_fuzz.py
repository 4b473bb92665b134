"""Sends invalid requests over raw sockets to every endpoint, and checks the responses.

For each case: no 5xx, no hang, and each error is a problem document. In the end: the service still registers
and lists, its memory has not grown, no connection is open, and its log has neither a failure nor a password.
"""

import json
import os
import re
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.api import RawResponse, register
from tests.e2e.launch import SHORT_TIMES
from tests.e2e.server import DEADLINE, Service, running
from usersvc.web.problems import PROBLEMS

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
SEED = int(os.environ.get("FUZZ_SEED", "20261124"))
WARM_UP = 500
"""Cases after which memory is stable."""
GROWTH = 24.0
"""MiB by which resident memory may grow afterwards; what allocators keep varies by a part of it."""
PASSWORD = "canary-7f3a-in-every-body"

# --- requests ---

PATHS = (
    "/register", "/users", "/users/01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e", "/users/x", "/livez", "/readyz", "/docs",
    "/docs/static/init.js", "/docs/static/swagger-ui.css", "/problems/email-taken", "/problems/x", "/openapi.json",
    "/metrics", "/nowhere", "/", "*",
)  # fmt: skip
METHODS = ("GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PRI", "get", "")

visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
line_text = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40).map(
    lambda t: t.encode("latin-1")
)

queries = st.lists(
    st.tuples(
        st.sampled_from(["limit", "cursor", "order", "email", "x", "limit[]", ""]),
        st.sampled_from(["1", "201", "-1", "asc", "ASC", "YXNjLjU", "a%40b.example", "%ff", "%"]) | st.text(visible),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
targets = st.one_of(
    st.sampled_from(PATHS),
    st.builds("{}?{}".format, st.sampled_from(PATHS), queries),
    st.builds("{}/{}".format, st.sampled_from(PATHS), st.text(visible, max_size=12)),
    st.text(visible, min_size=1, max_size=30),
    st.integers(1, 12_000).map(lambda length: "/" + "x" * length),
)
people = st.builds(
    lambda email, age: json.dumps({"email": f"{email}@example.com", "password": PASSWORD, "age": age}).encode(),
    st.uuids(),
    st.integers(17, 131),
)
odd_json = st.sampled_from(
    [
        b"", b"{", b"nul", b"{}{}", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b'{"age": NaN}', b'{"age": -Infinity}',
        b'{"email": "a@b.example", "email": "c@d.example"}', b"[" * 5000, b'{"a":' * 5000, b'{"age": 1e999999999}',
        b'{"age": ' + b"9" * 5000 + b"}", b'"\\ud800"', b'{"email": "\xed\xa0\x80"}', b"\0" * 100,
        b'{"password": "\\u0000"}', b"x" * 17_000, b'{"email": "' + b"\\" * 8000,
    ]
)  # fmt: skip
bodies = people | odd_json | st.binary(max_size=200)

FIELDS = (
    b"Content-Type: application/json", b"Content-Type: application/json; charset=utf-8",
    b"Content-Type: APPLICATION/JSON", b"Content-Type: application/json; charset=utf-16", b"Content-Type: text/plain",
    b"Content-Type: ", b"Content-Type: ;;",
    b"Content-Encoding: gzip", b"Content-Encoding: deflate, gzip", b"Content-Encoding: br", b"Accept: application/json",
    b"Accept: image/png", b"Accept: */*;q=0", b"Accept: application/x-ndjson", b"Expect: 100-continue", b"Expect: x",
    b"Idempotency-Key: one", b"Idempotency-Key: ", b"Idempotency-Key: a b", b"Authorization: Bearer x", b"Origin: null",
    b"X-Request-ID: mine", b"X-Request-ID: \xff", b"X-Forwarded-For: 1.2.3.4", b"Cookie: a=b; c", b"Range: bytes=0-1",
    b"If-None-Match: *", b"TE: trailers",
)  # fmt: skip
WILD = (
    b"Upgrade: websocket", b"Connection: upgrade", b"Connection: Upgrade\r\nUpgrade: websocket", b"Host: other",
    b"Host:", b"Transfer-Encoding: chunked", b"Content-Length: 3", b"Content-Length: -1",
)  # fmt: skip
names = st.text(st.sampled_from("abcXYZ-_.!"), min_size=1, max_size=10).map(str.encode)
mild_fields = st.one_of(
    st.sampled_from(FIELDS),
    st.builds(lambda name, value: b"%s: %s" % (name, value), names, line_text),
    st.integers(1, 40_000).map(lambda length: b"X-Long: " + b"y" * length),
)
wild_fields = st.one_of(st.sampled_from(WILD), line_text, st.binary(max_size=20))


@st.composite
def requests(draw: st.DrawFn, *, orderly: bool) -> bytes:
    """One request; an orderly one is framed correctly, and the last on its connection."""
    register = draw(st.booleans())
    method = "POST" if register else draw(st.sampled_from(METHODS[:7] if orderly else METHODS))
    target = "/register" if register else draw(targets)
    body = draw(bodies) if not orderly or method in {"POST", "PUT"} else b""
    version, hosts, framing = "HTTP/1.1", 1, "length"
    if not orderly:
        version = draw(st.sampled_from(["HTTP/1.1"] * 12 + ["HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "http/1.1", ""]))
        hosts = draw(st.sampled_from([1] * 12 + [0, 2]))
        framing = draw(st.sampled_from(["length"] * 6 + ["chunked"] * 3 + ["none", "short", "long", "both"]))
    lines = [f"{method} {target} {version}".encode("latin-1", "replace"), *[b"Host: test"] * hosts]
    lines += [b"Connection: close"] * orderly + [b"Content-Type: application/json"] * bool(
        register or (orderly and body)
    )
    if framing in {"length", "both"} and (body or not orderly):
        lines.append(b"Content-Length: %d" % len(body))
    if framing in {"short", "long"}:
        lines.append(b"Content-Length: %d" % (len(body) + (5 if framing == "long" else -len(body) // 2)))
    if framing in {"chunked", "both"}:
        lines.append(b"Transfer-Encoding: chunked")
        size = draw(st.integers(1, 4000))
        pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines += draw(st.lists(mild_fields, max_size=3))
    if not orderly and draw(st.sampled_from([False] * 4 + [True])):
        lines += draw(st.lists(wild_fields, max_size=2))
    return b"\r\n".join([*lines, b"", b""]) + body


@dataclass(frozen=True)
class Case:
    """The bytes for one connection."""

    pieces: list[bytes]
    reset: bool = False
    orderly: bool = False
    """Whether the service closes the connection after its response."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Some requests, perhaps damaged, in pieces."""
    if draw(st.booleans()):
        request = draw(requests(orderly=True))
        cut = draw(st.integers(0, len(request)))
        return Case([request[:cut], request[cut:]], orderly=True)
    sent = bytearray(b"".join(draw(st.lists(requests(orderly=False), min_size=1, max_size=3))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, max(0, len(sent) - 1)))
        match draw(st.integers(0, 2)):
            case 0:
                sent[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del sent[at : at + draw(st.integers(1, 20))]
            case _:
                sent[at:at] = draw(st.binary(min_size=1, max_size=20))
    whole = bytes(sent)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=3)))
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    return Case(pieces, reset=draw(st.sampled_from([False] * 9 + [True])))


# --- responses ---

_TEXTS = ("css", "html", "javascript", "plain")
_MEDIA_TYPES = {"application/json", "application/x-ndjson", "image/png", *(f"text/{kind}" for kind in _TEXTS)}


def exchange(service: Service, case: Case) -> bytes:
    """Send a case, and return all that is received; a time-out means that the service hangs."""
    response = b""
    with socket.create_connection(service.address, DEADLINE) as connection, suppress(ConnectionError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in case.pieces:
            connection.sendall(piece)
        if case.reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        if not case.orderly:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            response += piece
    return response


def check(response: bytes, *, has_head: bool) -> list[int]:
    """Check all responses of a connection, and return their statuses."""
    statuses = []
    while response:
        assert response.startswith(b"HTTP/1.1 "), f"not HTTP: {response[:200]!r}"
        status, headers, response = RawResponse.read(response)
        if status == 100:
            continue
        statuses.append(status)
        if "transfer-encoding" in headers:
            _, end, response = response.partition(b"0\r\n\r\n")
            assert end, "an incomplete list"
            body = b""
        else:
            length = int(headers["content-length"])
            if has_head and not response[:length].startswith(b"{") and response[:5] in {b"", b"HTTP/"}:
                length = 0
            assert len(response) >= length, f"half a body: {headers} {response!r}"
            body, response = response[:length], response[length:]
        check_one(status, headers, body)
    return statuses


def check_one(status: int, headers: dict[str, str], body: bytes) -> None:
    # 501 and 505 are faults of the client.
    assert status < 500 or status in {501, 505}, f"{status}: {body!r}"
    assert headers["x-request-id"]
    assert headers["x-content-type-options"] == "nosniff"
    assert PASSWORD.encode() not in body
    media_type = headers["content-type"].partition(";")[0]
    assert media_type in ({"application/problem+json"} if status >= 400 else _MEDIA_TYPES)
    document = json.loads(body) if body and media_type.endswith("json") else {}
    if body and status >= 400:
        assert document["status"] == status == PROBLEMS[document["code"]].status
        assert document.keys() >= {"type", "title", "detail", "instance"}


def resident(service: Service) -> float:
    """The memory of the process, in MiB."""
    return int(re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{service.pid}/status").read_text())[0]) / 1024


def open_files(service: Service) -> int:
    return len([*Path(f"/proc/{service.pid}/fd").iterdir()])


def fuzz(service: Service, count: int, seed: int) -> Counter[int]:
    """Send cases; return the statuses of the responses. hypothesis prints the smallest case that fails."""
    statuses: Counter[int] = Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        # Large heads and bodies are the point here.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases())
    def send(case: Case) -> None:
        statuses.update(check(exchange(service, case), has_head=b"HEAD " in b"".join(case.pieces)))

    send()
    return statuses


def test_service_withstands_invalid_requests(tmp_path: Path) -> None:
    with running(tmp_path, command=SHORT_TIMES) as service:
        files = open_files(service)
        fuzz(service, WARM_UP, SEED)
        before = resident(service)
        statuses = fuzz(service, CASES - WARM_UP, SEED + 1)
        assert {200, 201, 400, 404, 405, 415, 422} <= statuses.keys(), statuses
        assert resident(service) - before < GROWTH
        deadline = time.monotonic() + DEADLINE
        while open_files(service) > files + 2:
            assert time.monotonic() < deadline, "connections are left open"
            time.sleep(0.05)
        with service.client() as client:
            assert client.get(f"/users/{register(client)['id']}").status_code == 200
            assert client.get("/users").status_code == 200
        assert service.stop() == 0
    found = [line for line in service.output.splitlines() if PASSWORD in line] + service.errors
    assert not found, found[:5]
