"""The service as a process: commands, settings, start-up, shutdown."""

import json
import socket
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

import usersvc
from tests.e2e.api import person, read_responses, register
from tests.e2e.server import DEADLINE, SERVE, UVICORN, StartService, run_to_end, running
from usersvc.adapters.sqlite.schema import APPLICATION_ID

USERSVC = str(Path(sys.executable).with_name("usersvc"))


def test_the_console_script_and_the_module_are_one_program(tmp_path: Path) -> None:
    for program in ([USERSVC], [sys.executable, "-m", "usersvc"]):
        ended = run_to_end(tmp_path, {}, [*program, "--version"])
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"usersvc {usersvc.__version__}\n", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        (SERVE, "USERSVC_DATABASE_URL", "mysql://root:geheim@localhost/users"),
        ((*UVICORN, "--port", "0"), "USERSVC_LOG_LEVEL", "loud"),
    ],
)
def test_an_invalid_setting_stops_the_start_with_one_line(
    tmp_path: Path, command: Sequence[str], name: str, value: str
) -> None:
    ended = run_to_end(tmp_path, {name: value}, command)

    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert f"{name} accepts " in line
    assert "geheim" not in line
    assert not [*tmp_path.iterdir()]


def test_settings_come_from_a_file_and_the_environment_takes_precedence(tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text(
        "USERSVC_DATABASE_URL=sqlite:///from-file.db\nUSERSVC_MAX_BODY_BYTES=nonsense\nUSERSVC_PASSWORD_MIN_LENGTH=15\n"
    )

    with running(tmp_path, {"USERSVC_MAX_BODY_BYTES": "1024"}) as service, service.client() as client:
        assert client.post("/register", json=person(password="x" * 1024)).status_code == 413
        refused = client.post("/register", json=person(password="fourteen chars"))
        assert refused.json()["errors"][0]["code"] == "too-short"
    assert {path.name for path in tmp_path.iterdir()} == {".env", "from-file.db"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_that_cannot_be_used_stops_the_start(tmp_path: Path, workers: str) -> None:
    database = tmp_path / "users.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1000")

    ended = run_to_end(tmp_path, {"USERSVC_DATABASE_URL": f"sqlite:///{database}", "USERSVC_WORKERS": workers})

    assert "newer usersvc" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode not in {0, 2}


def test_an_address_in_use_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = run_to_end(tmp_path, {"USERSVC_PORT": str(listener.getsockname()[1])})

    assert "address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.returncode not in {0, 2}


@pytest.mark.parametrize(("database", "files"), [("sqlite:///usersvc.db", ["usersvc.db"]), ("memory://", [])])
def test_a_stop_is_graceful_and_leaves_one_database_file_or_none(
    start: StartService, database: str, files: list[str]
) -> None:
    service = start(USERSVC_DATABASE_URL=database)
    with service.client() as client:
        register(client)
        # While the connection is open.
        assert service.stop() == 0

    assert "Application shutdown complete" in service.output
    assert "Traceback" not in service.output
    # The write-ahead log has been merged into the file.
    assert [path.name for path in service.folder.iterdir()] == files


def test_a_running_registration_is_completed_before_the_process_ends(start: StartService) -> None:
    service = start(USERSVC_BCRYPT_COST="12")
    sent = person()
    body = json.dumps(sent).encode()
    with socket.create_connection(service.address, DEADLINE) as connection:
        connection.sendall(
            b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        # The service requests the body, so it is processing the request.
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        service.ask_to_stop()
        received = b"".join(iter(partial(connection.recv, 65536), b""))
    assert service.ended() == 0

    [response] = read_responses(received)
    assert response.status == 201
    user = json.loads(response.rest)["data"]
    assert f"sent a welcome mail to {sent['email']}" in service.output
    assert "Traceback" not in service.output
    with start().client() as client:
        assert client.get(f"/users/{user['id']}").json()["data"] == user
