"""The running service with more registrations than it can hash passwords for."""

import json
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.api import RawResponse, person
from tests.e2e.launch import SHORT_GRACE
from tests.e2e.server import DEADLINE, Service, running

SLOW = {
    # About a second for a hash: long compared with everything else in these tests.
    "USERSVC_BCRYPT_COST": "14",
    "USERSVC_HASH_WORKERS": "1",
    "USERSVC_HASH_QUEUE": "2",
    "USERSVC_REGISTER_RATE": "",
}
SLOTS = 3
"""One password is hashed, two wait."""


def registration(body: bytes | None = None) -> bytes:
    """A request with this body, or that of a new user."""
    body = json.dumps(person()).encode() if body is None else body
    return (
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@contextmanager
def registering(service: Service, count: int) -> Iterator[set[socket.socket]]:
    """Connections that wait for a response to a registration; at the end they are closed."""
    with ExitStack() as stack:
        waiting = set()
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection(service.address, DEADLINE))
            connection.sendall(registration())
            waiting.add(connection)
        yield waiting


def responses(waiting: set[socket.socket], count: int) -> list[RawResponse]:
    """The first responses; their connections no longer wait."""
    found: list[RawResponse] = []
    while len(found) < count:
        readable, _, _ = select.select(waiting, [], [], DEADLINE)
        assert readable, "no response within the deadline"
        for connection in readable:
            waiting.remove(connection)
            found.append(RawResponse.read(connection.makefile("rb").read()))
    return found


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, SLOW, SHORT_GRACE) as service:
        yield service


def assert_overloaded(response: RawResponse) -> None:
    assert (response.status, json.loads(response.rest)["code"]) == (503, "overloaded")
    assert int(response.headers["retry-after"]) >= 1


def test_a_full_queue_rejects_registrations_at_once_until_clients_disconnect(slow: Service) -> None:
    with slow.client() as client, registering(slow, 10) as waiting:
        for response in responses(waiting, 10 - SLOTS):
            assert_overloaded(response)
        for path in ("/livez", "/readyz", "/users?limit=50"):
            assert client.get(path).status_code == 200
        assert client.get("/users").json()["data"] == []
        for body, expected in ((b"", 400), (b"{", 400), (b'{"age": 17}', 422), (b"\xff" * 20_000, 413)):
            assert RawResponse.read(slow.talk(registration(body))).status == expected
        assert_overloaded(RawResponse.read(slow.talk(registration())))
        # All of that took less time than a hash.
        assert select.select(waiting, [], [], 0) == ([], [], [])

    # All of them have closed their connections, which frees the queue.
    with slow.client() as client:
        deadline = time.monotonic() + DEADLINE
        sent = person()
        while (status := client.post("/register", json=sent).status_code) == 503:
            assert time.monotonic() < deadline, "the slots stay occupied"
        assert status == 201
        # The service has dropped the requests of clients that disconnected.
        assert [user["email"] for user in client.get("/users").json()["data"]] == [sent["email"]]


def test_a_stop_responds_to_waiting_registrations_that_they_can_be_retried(slow: Service) -> None:
    with registering(slow, 10) as waiting:
        # So the others have been accepted.
        responses(waiting, 10 - SLOTS)
        slow.ask_to_stop()
        rejected = [response for response in responses(waiting, SLOTS) if response.status != 201]
        assert slow.ended() == 0
    for response in rejected:
        assert_overloaded(response)
    assert len(rejected) >= SLOTS - 1
    assert "Traceback" not in slow.output
