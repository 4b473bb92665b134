"""Everybody as NDJSON, from the real service."""

import asyncio
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tests.e2e.api import assert_problem, person
from tests.e2e.server import DEADLINE, Service, StartService, break_reads, running
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.keyset import BATCH

NDJSON = {"Accept": "application/x-ndjson"}
CROWD = 2 * BATCH + 7


async def open_once(path: Path) -> None:
    async with SqliteUsers(path):
        pass


def fill(path: Path, how_many: int) -> None:
    """Make a file of users, without registering each."""
    asyncio.run(open_once(path))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO users (id, mailbox, email, age, password_hash, registered_at) VALUES (?, ?, ?, 30, 'none', ?)",
            (
                (
                    str(UUID(int=number)),
                    f"ü{number}@example.com",
                    f"ü{number}@example.com",
                    "2026-01-31T09:30:00.123456Z",
                )
                for number in range(how_many)
            ),
        )


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with more users than are read at once."""
    folder = tmp_path_factory.mktemp("crowded")
    fill(folder / "usersvc.db", CROWD)
    with running(folder) as service:
        yield service


def exported(client: httpx.Client, **query: str | int) -> list[dict[str, Any]]:
    response = client.get("/users", params=query, headers=NDJSON)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-ID"]
    assert response.content.endswith(b"\n") or not response.content
    return [json.loads(line) for line in response.content.splitlines()]


def test_everybody_comes_once_and_in_order(crowded: Service) -> None:
    with crowded.client() as client:
        everybody = exported(client)
        assert [user["email"] for user in everybody] == [f"ü{number}@example.com" for number in range(CROWD)]
        assert all(set(user) == {"id", "email", "age", "registered_at"} for user in everybody)
        assert exported(client, order="desc") == everybody[::-1]
        assert exported(client, limit=7) == everybody[:7]
        assert exported(client, email="Ü5@example.com") == [everybody[5]]
        assert exported(client, email="nobody@example.com") == []
        page = client.get("/users?limit=3").json()
        cursor = httpx.URL(page["links"]["next"]).params["cursor"]
        assert exported(client, cursor=cursor) == everybody[3:]
        assert page["data"] == everybody[:3]


def test_without_being_asked_for_it_comes_as_json(crowded: Service) -> None:
    with crowded.client() as client:
        for accept in ("application/json", "*/*", "application/json, application/x-ndjson;q=0.5"):
            assert client.get("/users", headers={"Accept": accept}).headers["Content-Type"] == "application/json"
        head = client.head("/users", headers=NDJSON)
        assert (head.status_code, head.headers["Content-Type"], head.content) == (200, "application/x-ndjson", b"")
        assert_problem(client.get("/users?limit=0", headers=NDJSON), 422, "validation-failed")
        assert_problem(client.get("/livez", headers=NDJSON), 406, "not-acceptable")


def test_a_reader_who_stops_reading_and_goes_harms_nobody(crowded: Service) -> None:
    for _ in range(5):
        with socket.create_connection(crowded.address, DEADLINE) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /users HTTP/1.1\r\nHost: test\r\nAccept: application/x-ndjson\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    with crowded.client() as client:
        assert len(exported(client)) == CROWD
        assert client.get("/users?limit=1").status_code == 200
    assert not crowded.errors


def test_the_export_is_protected_as_the_list_is(start: StartService) -> None:
    service = start(USERSVC_ADMIN_TOKEN="a-token-of-the-tests-4711")
    with service.client() as client:
        assert_problem(client.get("/users", headers=NDJSON), 401, "unauthorized")


def test_what_fails_at_the_beginning_is_told(start: StartService, tmp_path: Path) -> None:
    service = start()
    with service.client() as client:
        client.post("/register", json=person())
        break_reads(tmp_path / "usersvc.db")
        assert_problem(client.get("/users", headers=NDJSON), 503, "storage-unavailable")


def test_what_fails_on_the_way_breaks_off_and_never_looks_complete(tmp_path: Path) -> None:
    # More than all buffers on the way hold.
    fill(tmp_path / "usersvc.db", 100_000)
    with running(tmp_path) as service, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE)
        connection.connect(service.address)
        connection.sendall(b"GET /users HTTP/1.1\r\nHost: test\r\nAccept: application/x-ndjson\r\n\r\n")
        received = connection.recv(4096)
        # The service waits for the reader, in the middle of what there is.
        break_reads(tmp_path / "usersvc.db")
        began = time.monotonic()
        try:
            while piece := connection.recv(2**16):
                received += piece
                assert time.monotonic() - began < DEADLINE
        except ConnectionError:
            pass
        assert received.count(b"\n") > BATCH
        assert not received.endswith(b"0\r\n\r\n")
