"""The real service with more registrations than it can hash passwords for."""

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.api import person, register, users_from
from tests.e2e.server import DEADLINE, Service, StartService

SLOW = {
    # About a second for a hash: long beside everything else that happens here.
    "USERSVC_BCRYPT_COST": "14",
    "USERSVC_HASH_WORKERS": "1",
    "USERSVC_HASH_QUEUE": "2",
    "USERSVC_REGISTER_RATE": "",
}
EVERYBODY = "/users?limit=50&order=asc"
PLACES = 3
"""One is hashed, two wait."""


class Crowd:
    """People who register at the same time, each on a connection of their own."""

    def __init__(self, service: Service, bodies: list[bytes]) -> None:
        self._answers: dict[socket.socket, bytes] = {}
        self._waiting = selectors.DefaultSelector()
        for body in bodies:
            connection = socket.create_connection(service.address, DEADLINE)
            self._answers[connection] = b""
            self._waiting.register(connection, selectors.EVENT_READ)
            connection.sendall(
                b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )

    @property
    def waiting(self) -> int:
        """How many have had no answer, as far as has arrived."""
        self._read(0)
        return len(self._waiting.get_map())

    def answers(self, count: int) -> list[bytes]:
        """The first answers, as soon as there are so many."""
        deadline = time.monotonic() + DEADLINE
        while len(self._answers) - len(self._waiting.get_map()) < count:
            assert time.monotonic() < deadline, "no answer within the deadline"
            self._read(1)
        return [answer for connection, answer in self._answers.items() if not self._is_waiting(connection)]

    def go(self) -> None:
        """Everybody closes the connection."""
        for connection in self._answers:
            connection.close()
        self._waiting.close()

    def _read(self, seconds: float) -> None:
        for key, _ in self._waiting.select(seconds):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            piece = connection.recv(65536)
            self._answers[connection] += piece
            if not piece:
                self._waiting.unregister(connection)

    def _is_waiting(self, connection: socket.socket) -> bool:
        return connection in self._waiting.get_map()


@contextmanager
def crowd(service: Service, bodies: list[bytes]) -> Iterator[Crowd]:
    with ExitStack() as stack:
        people = Crowd(service, bodies)
        stack.callback(people.go)
        yield people


def bodies(count: int) -> list[bytes]:
    return [json.dumps(person()).encode() for _ in range(count)]


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def assert_overloaded(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    assert status(answer) == 503
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"retry-after"]) >= 1
    document = json.loads(body)
    assert (document["status"], document["code"]) == (503, "overloaded")


@pytest.fixture
def slow(start: StartService) -> Service:
    return start(**SLOW)


def test_beyond_the_queue_registrations_are_refused_at_once_and_everything_else_answers(slow: Service) -> None:
    with slow.client() as client, crowd(slow, bodies(10)) as people:
        refused = people.answers(10 - PLACES)
        assert people.waiting == PLACES
        for answer in refused:
            assert_overloaded(answer)

        for path in ("/livez", "/readyz", "/users?limit=50"):
            assert client.get(path).status_code == 200
        assert client.get("/users").json()["data"] == []
        for body in (b"", b"{", b'{"age": 17}', b"\xff" * 20_000):
            assert_overloaded(slow.talk(_request(body)))
        # All of that took less time than a hash.
        assert people.waiting == PLACES

        # The queue drains, and whoever comes then is welcome.
        answers = people.answers(10)
        assert sorted(status(answer) for answer in answers) == [201] * PLACES + [503] * (10 - PLACES)
        register(client)
        assert len(users_from(client, EVERYBODY)) == PLACES + 1
    assert "Traceback" not in slow.output


def test_whoever_closes_the_connection_while_waiting_makes_room(slow: Service) -> None:
    with crowd(slow, bodies(10)) as gone:
        gone.answers(10 - PLACES)
        assert gone.waiting == PLACES

    with slow.client() as client:
        deadline = time.monotonic() + DEADLINE
        sent = person()
        while (response := client.post("/register", json=sent)).status_code == 503:
            assert time.monotonic() < deadline, "the places stay taken"
        assert response.status_code == 201
        # Those who came before would be there too, had anybody gone on for them.
        assert [user["email"] for user in users_from(client, EVERYBODY)] == [sent["email"]]
    assert slow.stop() == 0
    assert not slow.errors


def test_a_stop_tells_those_who_wait_that_they_may_come_again(start: StartService) -> None:
    service = start(**SLOW | {"USERSVC_BCRYPT_COST": "16", "USERSVC_HASH_QUEUE": "8"})
    with crowd(service, bodies(10)) as people:
        # One finds no place, so the others have theirs.
        people.answers(1)
        service.ask_to_stop()
        answers = people.answers(10)
        assert service.ended() == 0
    assert {status(answer) for answer in answers} <= {201, 503}
    for answer in answers:
        if status(answer) == 503:
            assert_overloaded(answer)
    assert sum(status(answer) == 503 for answer in answers) >= 2
    assert "Traceback" not in service.output


def _request(body: bytes) -> bytes:
    return (
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
