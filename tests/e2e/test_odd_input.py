"""What no well-behaved client sends: the service keeps answering everybody else, and never fails over it."""

import json
import random
import re
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.e2e.api import RawResponse, person, read_responses
from tests.e2e.server import DEADLINE, Service, StartService
from tests.e2e.test_wire_limits import MALFORMED

CLOSE = b"Host: test\r\nConnection: close\r\n\r\n"
LAST = b"GET /livez HTTP/1.1\r\n" + CLOSE


@pytest.fixture(autouse=True)
def _still_answers(service: Service) -> Iterator[None]:
    yield
    answer = RawResponse.read(service.talk(LAST))
    assert answer.status == 200
    assert json.loads(answer.rest) == {"data": {"status": "ok"}}


def statuses(raw: bytes) -> list[int]:
    """The statuses of every response in what came back, complete or not."""
    return [int(piece[:3]) for piece in raw.split(b"HTTP/1.1 ")[1:]]


# And MALFORMED, of which test_wire_limits.py looks at the responses.
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
def test_garbage_is_no_failure_of_the_service(service: Service, garbage: bytes) -> None:
    # Half-closed, since some of it is the beginning of something that never comes.
    assert all(status < 500 for status in statuses(service.talk(garbage, then_half_close=True)))


def test_random_damage_is_no_failure_of_the_service(service: Service) -> None:
    body = json.dumps(person()).encode()
    head = b"POST /register HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    whole = head + CLOSE + body
    chance = random.Random(20261122)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    del damaged[at : at + chance.randint(1, 20)]
                case _:
                    damaged[at:at] = chance.randbytes(chance.randint(1, 20))
        answer = service.talk(bytes(damaged), then_half_close=True)
        assert all(status < 500 for status in statuses(answer)), bytes(damaged)


TARGETS = {
    b"//": 404,
    b"/%": 404,
    b"/%zz": 404,
    b"/%00": 404,
    b"/%ff%fe": 404,
    b"/%F0%9F%92%A9": 404,
    b"/users/%": 404,
    b"/users/%00": 404,
    b"/users/%ff": 404,
    b"/users/%0d%0aSet-Cookie:%20a=b": 404,
    b"/users/..%2flivez": 404,
    b"/users/%2e%2e/%2e%2e/etc/passwd": 404,
    b"/users/%252e%252e": 404,
    b"/problems/%0d%0aX-Injected:%20yes": 404,
    b"/docs/static/../openapi.py": 404,
    b"/docs/static/..%2f..%2f__init__.py": 404,
    b"/docs/static/%2e%2e/%2e%2e/__init__.py": 404,
    b"/docs/static/index.html": 404,
    b"/docs/static//etc/passwd": 404,
    b"/docs/static/": 404,
    b"/users?%": 422,
    b"/users?%00=%00": 422,
    b"/users?email=%ff%fe": 422,
    b"/users?=": 422,
    b"/users?limit=%31": 200,
    b"/users?&&": 200,
    b"/users?limit[]=1": 422,
    b"/livez?anything=%zz": 422,
    b"/livez?&": 200,
    b"/livez#fragment": 200,
    b"/livez;a=b": 404,
    b"http://elsewhere.example/livez": 200,
}


@pytest.mark.parametrize(("target", "status"), TARGETS.items())
def test_an_odd_target_has_an_ordinary_answer(service: Service, target: bytes, status: int) -> None:
    answer = RawResponse.read(service.talk(b"GET " + target + b" HTTP/1.1\r\n" + CLOSE))

    assert answer.status == status
    assert answer.headers["content-type"] in {"application/json", "application/problem+json"}
    assert "x-injected" not in answer.headers
    assert "set-cookie" not in answer.headers
    assert json.loads(answer.rest)


def cpu_seconds(service: Service) -> float:
    """The CPU time that the service has used so far."""
    with service.client() as client:
        [seconds] = re.findall(r"^process_cpu_seconds_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(seconds)


def test_a_path_of_many_segments_costs_no_more_than_another_of_its_length(service: Service) -> None:
    costs = {}
    for path in (b"/" + b"a" * 7999, b"/" * 8000, b"/." * 4000):
        before = cpu_seconds(service)
        for _ in range(40):
            requests = (b"GET " + path + b" HTTP/1.1\r\nHost: test\r\n\r\n") * 5
            answers = read_responses(service.talk(requests + LAST))
            assert [answer.status for answer in answers] == [404] * 5 + [200]
            assert {answer.headers["content-type"] for answer in answers[:5]} == {"application/problem+json"}
        costs[path] = cpu_seconds(service) - before
    # 200 searches would take 2 s.
    assert max(costs.values()) < 3 * min(costs.values()) + 0.2, costs


def test_pipelined_requests_are_answered_in_their_order(service: Service) -> None:
    bodies = [json.dumps(person()).encode() for _ in range(3)]
    requests = [
        b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
        for body in bodies
    ]
    requests.insert(1, b"GET /nowhere HTTP/1.1\r\nHost: test\r\n\r\n")

    answers = read_responses(service.talk(b"".join(requests) + LAST))

    assert [answer.status for answer in answers] == [201, 404, 201, 201, 200]
    registered = [json.loads(answers[at].rest)["data"]["email"] for at in (0, 2, 3)]
    assert registered == [json.loads(body)["email"] for body in bodies]


def test_requests_that_come_byte_by_byte_are_answered(service: Service) -> None:
    with socket.create_connection(service.address, DEADLINE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in LAST:
            connection.send(bytes([byte]))
        answer = connection.makefile("rb").read()

    assert RawResponse.read(answer).status == 200


def vanish(service: Service, after: bytes) -> None:
    with socket.create_connection(service.address, DEADLINE) as connection:
        connection.sendall(after)
        # Without lingering, closing is a reset.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("cut", [1, 20, 60, 120])
def test_clients_that_vanish_do_no_harm(service: Service, cut: int) -> None:
    body = json.dumps(person()).encode()
    request = (
        b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    for _ in range(5):
        vanish(service, request[:cut])
        vanish(service, request)


def test_what_clients_do_wrong_is_not_reported_as_a_failure_of_the_service(start: StartService) -> None:
    service = start()
    for garbage in (*GARBAGE.values(), *MALFORMED.values()):
        service.talk(garbage, then_half_close=True)
        vanish(service, garbage)
    service.stop()

    # Whoever is woken by errors should not be woken by anybody's lost connection.
    assert not service.errors
