"""The real service while its disk is full, its file is locked or gone, and when it is stopped under load."""

import os
import resource
import shutil
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
from tests.e2e.server import SERVE, Service, StartService, run_to_end, running
from usersvc.application.readiness import CHECK_INTERVAL

BOUND = 15.0
"""Seconds within which everything is answered, whatever happens: the service promises four, machines may be slow."""


@contextmanager
def bounded_client(service: Service) -> Iterator[httpx.Client]:
    """A client for which an answer that does not come in bounded time is an error."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=BOUND) as client:
        yield client


def assert_unavailable(response: httpx.Response) -> None:
    assert_problem(response, 503, "storage-unavailable")
    assert int(response.headers["Retry-After"]) > 0


def assert_readiness(client: httpx.Client, status: int) -> None:
    """Wait until ``/readyz`` responds with a status; what is sent after the interval of the checks has to have it."""
    begun = sent = time.monotonic()
    while (response := client.get("/readyz")).status_code != status:
        assert sent < begun + CHECK_INTERVAL, response.text
        time.sleep(0.02)
        sent = time.monotonic()
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        assert_unavailable(response)


def assert_fault_is_reported(service: Service) -> None:
    """Concurrent registrations get 503, nothing is stored, and the process keeps running."""
    with bounded_client(service) as client, ThreadPoolExecutor(24) as crowd:
        answers = list(crowd.map(lambda sent: client.post("/register", json=sent), [person() for _ in range(24)]))
        for answer in answers:
            assert_unavailable(answer)
        assert_readiness(client, 503)
        assert client.get("/livez").status_code == 200


def assert_well(service: Service, registered: list[str]) -> None:
    """The service registers a new user, and has exactly the users who were registered before."""
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


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux can limit another process")
def test_a_file_that_cannot_grow_is_unavailable_until_it_can(start: StartService) -> None:
    service = start()
    registered: list[str] = []
    assert_well(service, registered)

    def limit(size: int) -> None:
        resource.prlimit(service._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    limit(0)
    assert_fault_is_reported(service)
    with bounded_client(service) as client:
        assert ids(client) == registered
    limit(resource.RLIM_INFINITY)
    assert_well(service, registered)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The folder of a file system with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_disk_stops_the_start_in_one_line(small_disk: Path) -> None:
    registered: list[str] = []
    with running(small_disk) as service:
        assert_well(service, registered)
        service.stop()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    refused = run_to_end(small_disk, {})
    assert refused.returncode != 0
    assert "StorageUnavailable: cannot open the database: the file cannot be written to" in refused.stderr
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


def test_a_lock_held_for_long_is_unavailable_until_it_is_released(impatient: Service) -> None:
    registered: list[str] = []
    assert_well(impatient, registered)
    with closing(sqlite3.connect(impatient.folder / "usersvc.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert_fault_is_reported(impatient)
        with bounded_client(impatient) as client:
            assert ids(client) == registered
    assert_well(impatient, registered)


def test_stopping_while_the_file_is_locked_responds_and_ends(impatient: Service) -> None:
    with (
        closing(sqlite3.connect(impatient.folder / "usersvc.db", isolation_level=None)) as other,
        bounded_client(impatient) as client,
        ThreadPoolExecutor(8) as crowd,
    ):
        other.execute("BEGIN IMMEDIATE")
        answers = [crowd.submit(client.post, "/register", json=person()) for _ in range(8)]
        # One line for the first that has waited for the lock: the others are waiting by then.
        impatient.wait_for_output("storage-unavailable")
        late = crowd.submit(client.post, "/register", json=person())
        impatient.ask_to_stop()
        for answer in answers:
            assert_unavailable(answer.result())
        # Unless it came when nothing new was taken any more.
        with suppress(httpx.TransportError):
            assert_unavailable(late.result())
        assert impatient.ended() == 0


# --- the file goes --------------------------------------------------------------------------------------------------


def test_moved_storage_is_unavailable_until_it_is_back_and_a_copy_until_a_restart(tmp_path: Path) -> None:
    """In each of the ways in which it may go: tests/integration/test_faults.py."""
    folder, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    folder.mkdir()
    path = folder / "usersvc.db"
    settings = {"USERSVC_DATABASE_URL": f"sqlite:///{path}"}
    registered: list[str] = []
    # Its working folder is another one, as that would stay whatever its name.
    with running(tmp_path, settings) as service:
        assert_well(service, registered)
        folder.rename(elsewhere)
        folder.mkdir()
        assert_fault_is_reported(service)
        assert not path.exists()
        folder.rmdir()
        elsewhere.rename(folder)
        assert_well(service, registered)

        saved = run_to_end(tmp_path, settings, (*SERVE[:-1], "db", "backup", "saved.db"))
        assert saved.returncode == 0, saved.stderr
        assert_well(service, registered.copy())
        shutil.rmtree(folder)
        assert_fault_is_reported(service)
        folder.mkdir()
        (tmp_path / "saved.db").rename(path)
        assert_fault_is_reported(service)
        assert service.stop() == 0
    with running(tmp_path, settings) as service:
        assert_well(service, registered)
        assert service.stop() == 0
    assert ids_in(path) == registered


# --- the end --------------------------------------------------------------------------------------------------------


def test_stopping_under_load_keeps_all_acknowledged_users(start: StartService) -> None:
    service = start()
    enough = threading.Event()
    answered: list[str] = []
    unanswered: list[str] = []

    def register_on_and_on(*, keep_alive: bool) -> None:
        """Until the service takes no more."""
        headers = {} if keep_alive else {"Connection": "close"}
        with bounded_client(service) as client:
            while True:
                sent = person()
                try:
                    response = client.post("/register", json=sent, headers=headers)
                except httpx.ConnectError:
                    return
                except httpx.TransportError:
                    unanswered.append(sent["email"])
                    continue
                assert response.status_code == 201, response.text
                answered.append(sent["email"])
                if len(answered) > 100:
                    enough.set()

    with ThreadPoolExecutor(8) as crowd:
        people = [crowd.submit(register_on_and_on, keep_alive=bool(n % 2)) for n in range(8)]
        assert enough.wait(30)
        service.ask_to_stop()
        assert service.ended() == 0
        for client in people:
            client.result()

    assert "Application shutdown complete" in service.output
    assert "Traceback" not in service.output
    assert [file.name for file in service.folder.iterdir()] == ["usersvc.db"]
    with closing(sqlite3.connect(service.folder / "usersvc.db")) as database:
        stored = [email for (email,) in database.execute("SELECT email FROM users")]
    # Who got no answer had come too late to be taken, and so is not there either.
    assert sorted(stored) == sorted(answered)
    assert not set(stored) & set(unanswered)
