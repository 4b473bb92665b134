"""The real service while its disk is full, its file is locked or gone, and when it is stopped under load."""

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import assert_problem, person, register
from tests.e2e.launch import SHORT_LOCKS
from tests.e2e.server import Service, StartService, run_to_end, running
from usersvc.application.readiness import CHECK_INTERVAL

BOUND = 15.0
"""Seconds within which every request gets a response: the service promises four, machines may be slow."""


@contextmanager
def bounded_client(service: Service) -> Iterator[httpx.Client]:
    """A client for which a response after ``BOUND`` is an error."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=BOUND) as client:
        yield client


def assert_unavailable(response: httpx.Response) -> None:
    assert_problem(response, 503, "storage-unavailable")
    assert int(response.headers["Retry-After"]) > 0


def assert_readiness(client: httpx.Client, status: int) -> None:
    """Wait until ``/readyz`` responds with a status, at the latest after the interval of the checks."""
    begun = sent = time.monotonic()
    while (response := client.get("/readyz")).status_code != status:
        assert sent < begun + CHECK_INTERVAL, response.text
        time.sleep(0.02)
        sent = time.monotonic()
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        assert_unavailable(response)


def assert_fault_is_reported(service: Service) -> None:
    """Concurrent registrations and ``/readyz`` get 503, and the process lives."""
    with bounded_client(service) as client, ThreadPoolExecutor(24) as executor:
        responses = list(executor.map(lambda sent: client.post("/register", json=sent), [person() for _ in range(24)]))
        for response in responses:
            assert_unavailable(response)
        assert_readiness(client, 503)
        assert client.get("/livez").status_code == 200


def assert_well(service: Service, registered: list[str]) -> None:
    """The service registers a user, and has exactly those registered before and this one."""
    with bounded_client(service) as client:
        assert_readiness(client, 200)
        registered.append(register(client)["id"])
        assert ids(client) == registered


def ids(client: httpx.Client) -> list[str]:
    return [user["id"] for user in client.get("/users?limit=200").json()["data"]]


def ids_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [user_id for (user_id,) in database.execute("SELECT id FROM users ORDER BY position")]


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user cannot mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_is_unavailable_until_there_is_space(small_disk: Path) -> None:
    registered: list[str] = []
    with running(small_disk) as service:
        assert_well(service, registered)
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert_fault_is_reported(service)
        with bounded_client(service) as client:
            assert ids(client) == registered
        filler.unlink()
        assert_well(service, registered)


def test_a_read_only_disk_stops_the_start_in_one_line(small_disk: Path) -> None:
    registered: list[str] = []
    with running(small_disk) as service:
        assert_well(service, registered)
        service.stop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused = run_to_end(small_disk, {})
    assert refused.returncode != 0
    assert "cannot open the database: the file cannot be written to" in refused.stderr
    assert "Traceback" not in refused.stderr
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    with running(small_disk) as service:
        assert_well(service, registered)


# --- locks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Service]:
    """A service that waits for a lock for a third of a second."""
    with running(tmp_path, command=SHORT_LOCKS) as service:
        yield service


def test_a_locked_file_is_unavailable_and_the_service_stops_in_time(impatient: Service) -> None:
    with (
        closing(sqlite3.connect(impatient.folder / "usersvc.db", isolation_level=None)) as other,
        bounded_client(impatient) as client,
        ThreadPoolExecutor(8) as executor,
    ):
        other.execute("BEGIN IMMEDIATE")
        assert_fault_is_reported(impatient)
        assert ids(client) == []
        reported = impatient.output.count("storage-unavailable")
        responses = [executor.submit(client.post, "/register", json=person()) for _ in range(8)]
        # One line for the first that has waited for the lock: the others are waiting by then.
        impatient.wait_for_output("storage-unavailable", reported + 1)
        late = executor.submit(client.post, "/register", json=person())
        impatient.ask_to_stop()
        for response in responses:
            assert_unavailable(response.result())
        # Unless no new connection was accepted any more.
        with suppress(httpx.TransportError):
            assert_unavailable(late.result())
        assert impatient.ended() == 0


# --- the file goes --------------------------------------------------------------------------------------------------


def test_moved_storage_is_unavailable_until_it_is_back(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "usersvc.db"
    settings = {"USERSVC_DATABASE_URL": f"sqlite:///{path}"}
    registered: list[str] = []
    # Not in its working directory, which it could use under any name.
    with running(tmp_path, settings) as service:
        assert_well(service, registered)
        folder.rename(elsewhere)
        folder.mkdir()
        assert_fault_is_reported(service)
        assert not path.exists()
        folder.rmdir()
        elsewhere.rename(folder)
        assert_well(service, registered)
        assert service.stop() == 0
    assert ids_in(path) == registered


# --- the end --------------------------------------------------------------------------------------------------------


def test_stopping_under_load_keeps_all_acknowledged_users(start: StartService) -> None:
    service = start()
    enough = threading.Event()
    acknowledged: list[str] = []
    unacknowledged: list[str] = []

    def register_repeatedly(*, keep_alive: bool) -> None:
        """Register until the service accepts no connection."""
        headers = {} if keep_alive else {"Connection": "close"}
        with bounded_client(service) as client:
            while True:
                sent = person()
                try:
                    response = client.post("/register", json=sent, headers=headers)
                except httpx.ConnectError:
                    return
                except httpx.TransportError:
                    unacknowledged.append(sent["email"])
                    continue
                assert response.status_code == 201, response.text
                acknowledged.append(sent["email"])
                if len(acknowledged) > 100:
                    enough.set()

    with ThreadPoolExecutor(8) as executor:
        people = [executor.submit(register_repeatedly, keep_alive=bool(n % 2)) for n in range(8)]
        assert enough.wait(30)
        service.ask_to_stop()
        assert service.ended() == 0
        for each in people:
            each.result()

    assert "Application shutdown complete" in service.output
    assert "Traceback" not in service.output
    assert [file.name for file in service.folder.iterdir()] == ["usersvc.db"]
    with closing(sqlite3.connect(service.folder / "usersvc.db")) as database:
        stored = [email for (email,) in database.execute("SELECT email FROM users")]
    # A request without a response came too late to be accepted, so its user is not stored.
    assert sorted(stored) == sorted(acknowledged)
    assert not set(stored) & set(unacknowledged)
