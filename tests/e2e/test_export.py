"""All users as NDJSON, from the real service."""

import asyncio
import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.api import assert_problem
from tests.e2e.server import DEADLINE, Service, break_reads, running
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.keyset import BATCH

NDJSON = {"Accept": "application/x-ndjson"}
USERS = 2 * BATCH + 7
INSERT = """
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)
    INSERT INTO users (id, mailbox, email, age, password_hash, registered_at)
    SELECT printf('00000000-0000-0000-0000-%012x', n), format('ü%d@example.com', n), format('ü%d@example.com', n),
        30, 'none', '2026-01-31T09:30:00.123456Z'
    FROM numbers
"""


def fill(path: Path, count: int) -> None:
    """Create a database with users, without registering each."""

    async def create() -> None:
        async with SqliteUsers(path):
            pass

    asyncio.run(create())
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(INSERT, [count])


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with more users than are read at once."""
    folder = tmp_path_factory.mktemp("crowded")
    fill(folder / "usersvc.db", USERS)
    with running(folder) as service:
        yield service


def export(client: httpx.Client, **query: str | int) -> list[dict[str, Any]]:
    response = client.get("/users", params=query, headers=NDJSON)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Request-ID"]
    assert response.content.endswith(b"\n") or not response.content
    return [json.loads(line) for line in response.content.splitlines()]


def test_every_user_is_exported_once_and_in_order(crowded: Service) -> None:
    with crowded.client() as client:
        users = export(client)
        assert [user["email"] for user in users] == [f"ü{number}@example.com" for number in range(USERS)]
        assert all(set(user) == {"id", "email", "age", "registered_at"} for user in users)
        assert export(client, order="desc") == users[::-1]
        assert export(client, limit=7) == users[:7]
        assert export(client, email="Ü5@example.com") == [users[5]]
        assert export(client, email="missing@example.com") == []
        page = client.get("/users?limit=3").json()
        cursor = httpx.URL(page["links"]["next"]).params["cursor"]
        assert export(client, cursor=cursor) == users[3:]
        assert page["data"] == users[:3]
        head = client.head("/users", headers=NDJSON)
        assert (head.status_code, head.headers["Content-Type"], head.content) == (200, "application/x-ndjson", b"")
        assert_problem(client.get("/users?limit=0", headers=NDJSON), 422, "validation-failed")


def connect(service: Service) -> socket.socket:
    """Request an export and read only the beginning of the response."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(DEADLINE)
    connection.connect(service.address)
    connection.sendall(b"GET /users HTTP/1.1\r\nHost: test\r\nAccept: application/x-ndjson\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    return connection


def test_an_export_that_fails_midway_is_not_terminated_and_later_ones_are_503(tmp_path: Path) -> None:
    # More than all buffers on the way hold.
    fill(tmp_path / "usersvc.db", 100_000)
    with running(tmp_path) as service, connect(service) as connection:
        received = b""
        # The service waits for the client, in the middle of the list.
        break_reads(tmp_path / "usersvc.db")
        with suppress(ConnectionError):
            while piece := connection.recv(2**16):
                received += piece
        assert received.count(b"\n") > BATCH
        assert not received.endswith(b"0\r\n\r\n")
        with service.client() as client:
            assert_problem(client.get("/users", headers=NDJSON), 503, "storage-unavailable")
