"""Sends invalid requests over raw sockets to every endpoint, and checks the responses.

    python -m tests.soak.fuzz --cases 20000

For each case: no 5xx, no hang, and each error is a problem document. In the end: the service still registers
and lists, its memory has not grown, no connection is open, and its log has neither a failure nor a password.
"""

import argparse
import json
import random
import re
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.api import RawResponse, register
from tests.e2e.launch import SHORT_TIMES
from tests.e2e.server import DEADLINE, Service, running
from usersvc.web.problems import PROBLEMS

PASSWORD = "canary-7f3a-in-every-body"
WARM_UP = 500
"""Cases after which memory is stable."""
GROWTH = 24.0
"""MiB by which resident memory may grow afterwards; what allocators keep varies by a part of it."""

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
        st.one_of(
            st.sampled_from(
                ["1", "200", "201", "0", "-1", "1e3", "asc", "desc", "ASC", "YXNjLjU", "a%40b.example", "%ff", "%"]
            ),
            st.text(visible, max_size=20),
        ),
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

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30),
    st.sampled_from(["a@b.example", PASSWORD, "\ud800", "\0", "x" * 300, 18, 130, 17, 10**400, 1e400]),
)  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
documents = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "email": st.one_of(st.uuids().map("{}@example.com".format), values),
            "password": st.one_of(st.just(PASSWORD), values),
            "age": st.one_of(st.integers(18, 130), values),
            "extra": values,
        },
    ),
    values,
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
        b'{"password": "\\u0000"}',
        b"x" * 17_000, b'{"email": "' + b"\\" * 8000,
    ]
)  # fmt: skip
bodies = st.one_of(
    documents.map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass")),
    odd_json,
    st.binary(max_size=200),
)

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
    body = draw(st.one_of(people, bodies)) if not orderly or method in {"POST", "PUT"} else b""
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

    @property
    def sent(self) -> bytes:
        return b"".join(self.pieces)


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
_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) [^\r\n]*\r\n")
_MEDIA_TYPES = {"application/json", "application/x-ndjson", "image/png", *(f"text/{kind}" for kind in _TEXTS)}


def half_close(connection: socket.socket) -> None:
    """Send no more, unless the other side has reset the connection."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


@dataclass
class Run:
    """A fuzzed service, and statistics of its responses."""

    service: Service
    statuses: Counter[int] = field(default_factory=Counter)
    without_response: int = 0
    slowest: float = 0.0
    cases: int = 0

    def send(self, case: Case) -> None:
        """Send one case, and check the responses.

        Raises:
            AssertionError: a response is invalid.
        """
        self.cases += 1
        began = time.perf_counter()
        response = self._exchange(case)
        self.slowest = max(self.slowest, time.perf_counter() - began)
        statuses = [*self._look(response, has_head=b"HEAD " in case.sent)]
        self.statuses.update(statuses)
        self.without_response += not statuses

    def _exchange(self, case: Case) -> bytes:
        with socket.create_connection(self.service.address, DEADLINE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            response = b""
            with suppress(ConnectionError):
                for piece in case.pieces:
                    connection.sendall(piece)
                if case.reset:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return b""
                if not case.orderly:
                    half_close(connection)
                # A TimeoutError, which is not suppressed, means that the service hangs.
                while piece := connection.recv(65536):
                    response += piece
            return response

    def _look(self, response: bytes, *, has_head: bool) -> Sequence[int]:
        statuses = []
        while response:
            match = _STATUS.match(response)
            assert match is not None, f"not HTTP: {response[:200]!r}"
            head, end, response = response.partition(b"\r\n\r\n")
            assert end, f"half a head: {head!r}"
            status = int(match[1])
            if status == 100:
                continue
            statuses.append(status)
            headers = RawResponse.read(head + end).headers
            if "transfer-encoding" in headers:
                body, end, response = response.partition(b"0\r\n\r\n")
                assert end, "an incomplete list"
                body = b""
            else:
                length = int(headers["content-length"])
                if (
                    has_head
                    and not response[:length].startswith(b"{")
                    and (not response or response.startswith(b"HTTP/"))
                ):
                    length = 0
                assert len(response) >= length, f"half a body: {head!r} {response!r}"
                body, response = response[:length], response[length:]
            self._look_at(status, headers, body)
        return statuses

    def _look_at(self, status: int, headers: dict[str, str], body: bytes) -> None:
        # 501 and 505 are faults of the client.
        assert status < 500 or status in {501, 505}, f"{status}: {body!r}"
        assert headers["x-request-id"]
        assert headers["x-content-type-options"] == "nosniff"
        assert PASSWORD.encode() not in body
        media_type = headers["content-type"].partition(";")[0]
        if status >= 400:
            assert media_type == "application/problem+json"
        else:
            assert media_type in _MEDIA_TYPES
        if body and media_type.endswith("json"):
            document: dict[str, Any] = json.loads(body)
            if status >= 400:
                assert document["status"] == status
                assert PROBLEMS[document["code"]].status == status
                assert document.keys() >= {"type", "title", "detail", "instance"}

    def resident(self) -> float:
        """The memory of the process, in MiB."""
        status = Path(f"/proc/{self.service._process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024

    def open_files(self) -> int:
        return len([*Path(f"/proc/{self.service._process.pid}/fd").iterdir()])


def run(folder: Path, how_many: int, seed: int) -> str:
    """Fuzz a service of its own; return a summary.

    Raises:
        AssertionError: a check failed; hypothesis prints the smallest case.
    """
    with running(folder, command=SHORT_TIMES) as service:
        fuzzed = Run(service)
        files = fuzzed.open_files()

        def fuzz(cases_now: int, seed_now: int) -> None:
            @hypothesis.seed(seed_now)
            @settings(
                max_examples=cases_now,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                # Large heads and bodies are the point here.
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            )
            @given(cases())
            def send(case: Case) -> None:
                fuzzed.send(case)

            send()

        warm_up = min(WARM_UP, how_many // 2)
        fuzz(warm_up, seed)
        before = fuzzed.resident()
        began = time.monotonic()
        fuzz(how_many - warm_up, seed + 1)
        seconds = time.monotonic() - began
        after = fuzzed.resident()
        assert after - before < GROWTH, f"memory grew from {before:.1f} to {after:.1f} MiB"
        deadline = time.monotonic() + DEADLINE
        while fuzzed.open_files() > files + 2:
            assert time.monotonic() < deadline, "connections are left open"
            time.sleep(0.05)
        with service.client() as client:
            assert client.get(f"/users/{register(client)['id']}").status_code == 200
            assert client.get("/users").status_code == 200
        assert service.stop() == 0
        found = [line for line in service.output.splitlines() if PASSWORD in line] + service.errors
        assert not found, found[:5]
    return (
        f"{fuzzed.cases} cases (seed {seed}) at {(how_many - warm_up) / seconds:.0f} a second: "
        f"responses by status {dict(sorted(fuzzed.statuses.items()))}, {fuzzed.without_response} without one, "
        f"the slowest {fuzzed.slowest:.2f} s; memory {before:.1f} MiB, then {after:.1f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Send the service invalid requests.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**9), help="of the cases")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder), chosen.cases, chosen.seed))


if __name__ == "__main__":
    main()
