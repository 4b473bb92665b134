"""The real service with more registrations than it can hash passwords for."""

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.e2e.api import person, users_from
from tests.e2e.launch import SHORT_GRACE
from tests.e2e.server import DEADLINE, Service, StartService, running

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


def test_a_full_queue_refuses_registrations_at_once_until_clients_go(start: StartService) -> None:
    slow = start(**SLOW)
    with slow.client() as client, crowd(slow, bodies(10)) as people:
        refused = people.answers(10 - PLACES)
        assert people.waiting == PLACES
        for answer in refused:
            assert_overloaded(answer)

        for path in ("/livez", "/readyz", "/users?limit=50"):
            assert client.get(path).status_code == 200
        assert client.get("/users").json()["data"] == []
        for body, expected in ((b"", 400), (b"{", 400), (b'{"age": 17}', 422), (b"\xff" * 20_000, 413)):
            assert status(slow.talk(_request(body))) == expected
        [body] = bodies(1)
        assert_overloaded(slow.talk(_request(body)))
        # All of that took less time than a hash.
        assert people.waiting == PLACES

    # All of them have closed their connections, which frees the queue.
    with slow.client() as client:
        deadline = time.monotonic() + DEADLINE
        sent = person()
        while (response := client.post("/register", json=sent)).status_code == 503:
            assert time.monotonic() < deadline, "the places stay taken"
        assert response.status_code == 201
        # The service does not go on with requests whose clients are gone.
        assert [user["email"] for user in users_from(client, EVERYBODY)] == [sent["email"]]
    assert slow.stop() == 0
    assert not slow.errors


def test_a_stop_tells_those_who_wait_that_they_may_come_again(tmp_path: Path) -> None:
    settings = SLOW | {"USERSVC_HASH_QUEUE": "8"}
    with running(tmp_path, settings, SHORT_GRACE) as service, crowd(service, bodies(10)) as people:
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
