"""Invalid and unusual requests: the service still serves other clients, and logs no failure."""

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.api import RawResponse, person, read_responses
from tests.e2e.server import DEADLINE, Service, StartService
from tests.e2e.test_wire_limits import REFUSED

CLOSE = b"Host: test\r\nConnection: close\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\n" + CLOSE


def registration_of(person: dict[str, Any]) -> bytes:
    body = json.dumps(person).encode()
    head = b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


@pytest.fixture(autouse=True)
def _still_responds(service: Service) -> Iterator[None]:
    yield
    response = RawResponse.read(service.talk(LAST))
    assert response.status == 200
    assert json.loads(response.rest) == {"data": {"status": "ok"}}


def statuses(raw: bytes) -> list[int]:
    """The statuses of all responses, complete or not."""
    return [int(piece[:3]) for piece in raw.split(b"HTTP/1.1 ")[1:]]


MALFORMED = REFUSED[400, "malformed-http"].values()  # test_wire_limits.py checks the responses
GARBAGE = {
    "header that is not UTF-8": b"GET /livez HTTP/1.1\r\nX-Request-ID: \xff\xfe\r\n" + CLOSE,
    "nothing": b"",
    "line breaks": b"\r\n\r\n\r\n",
    "noise": bytes(range(256)),
    "zeros": bytes(10_000),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "no version": b"GET /livez HTTP/9.9\r\n" + CLOSE,
    "header without colon": b"GET /livez HTTP/1.1\r\nnonsense\r\n" + CLOSE,
    "header without name": b"GET /livez HTTP/1.1\r\n: value\r\n" + CLOSE,
    "folded header": b"GET /livez HTTP/1.1\r\nX-Request-ID: a\r\n b\r\n" + CLOSE,
    "negative length": b"POST /register HTTP/1.1\r\nContent-Length: -2\r\n" + CLOSE + b"{}",
    "body cut short": b"POST /register HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    + CLOSE
    + b'{"email',
    "upgrade": b"GET /users HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nConnection: Upgrade, close\r\nHost: test\r\n\r\n",
    "body of a GET": b"GET /livez HTTP/1.1\r\nContent-Length: 5\r\n" + CLOSE + b"hello",
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_causes_no_server_error(service: Service, garbage: bytes) -> None:
    # Half-closed, since some of it is incomplete.
    assert all(status < 500 for status in statuses(service.talk(garbage, then_half_close=True)))


NOT_FOUND = b"""
// /% /%zz /%00 /%ff%fe /%F0%9F%92%A9 /users/% /users/%00 /users/%ff /users/%0d%0aSet-Cookie:%20a=b
/users/..%2flivez /users/%2e%2e/%2e%2e/etc/passwd /users/%252e%252e /problems/%0d%0aX-Injected:%20yes
/docs/static/../openapi.py /docs/static/..%2f..%2f__init__.py /docs/static/%2e%2e/%2e%2e/__init__.py
/docs/static/index.html /docs/static//etc/passwd /docs/static/ /livez;a=b
""".split()
INVALID = b"""
/users?% /users?%00=%00 /users?email=%ff%fe /users?= /users?limit[]=1 /livez?anything=%zz
""".split()
FOUND = b"""
/users?limit=%31 /users?&& /livez?& /livez#fragment http://elsewhere.example/livez
""".split()
TARGETS = [
    # The last ones take long if the router searches for them.
    *((target, 404) for target in (*NOT_FOUND, b"/" * 8000, b"/." * 4000)),
    *((target, 422) for target in INVALID),
    *((target, 200) for target in FOUND),
]


@pytest.mark.parametrize(("target", "status"), TARGETS)
def test_unusual_target_has_an_ordinary_response(service: Service, target: bytes, status: int) -> None:
    response = RawResponse.read(service.talk(b"GET " + target + b" HTTP/1.1\r\n" + CLOSE))

    assert response.status == status
    assert response.headers["content-type"] in {"application/json", "application/problem+json"}
    assert "x-injected" not in response.headers
    assert "set-cookie" not in response.headers
    assert json.loads(response.rest)


def test_pipelined_requests_get_responses_in_order(service: Service) -> None:
    people = [person() for _ in range(3)]
    requests = [registration_of(each) for each in people]
    requests.insert(1, b"GET /nowhere HTTP/1.1\r\nHost: test\r\n\r\n")

    responses = read_responses(service.talk(b"".join(requests) + LAST))

    assert [response.status for response in responses] == [201, 404, 201, 201, 200]
    registered = [json.loads(responses[at].rest)["data"]["email"] for at in (0, 2, 3)]
    assert registered == [each["email"] for each in people]


def vanish(service: Service, after: bytes) -> None:
    with socket.create_connection(service.address, DEADLINE) as connection:
        connection.sendall(after)
        # Without lingering, closing is a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_faults_of_clients_are_not_logged_as_failures(start: StartService) -> None:
    service = start()
    registration = registration_of(person())
    for garbage in (*GARBAGE.values(), *MALFORMED, *(registration[:cut] for cut in (1, 20, 60, 120, None))):
        service.talk(garbage, then_half_close=True)
        vanish(service, garbage)
    assert RawResponse.read(service.talk(LAST)).status == 200
    service.stop()

    assert not service.errors
