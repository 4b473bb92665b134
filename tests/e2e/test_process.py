"""The service as a process: its commands, its settings, its start, its end, and what it remembers."""

import json
import socket
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

import usersvc
from tests.e2e.api import assert_user, person, read_responses, register
from tests.e2e.server import DEADLINE, SERVE, UVICORN, StartService, free_port, run_to_end, running
from usersvc.adapters.sqlite.schema import APPLICATION_ID

USERSVC = str(Path(sys.executable).with_name("usersvc"))


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program", [[USERSVC], [sys.executable, "-m", "usersvc"]], ids=["usersvc", "python -m usersvc"]
)
def test_the_program_tells_its_version(tmp_path: Path, program: list[str]) -> None:
    told = run_to_end(tmp_path, {}, [*program, "--version"])

    assert (told.returncode, told.stdout, told.stderr) == (0, f"usersvc {usersvc.__version__}\n", "")


def test_the_program_tells_how_it_is_used(tmp_path: Path) -> None:
    told = run_to_end(tmp_path, {}, [*SERVE, "--help"])

    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("Usage: usersvc serve")
    assert "USERSVC_" in told.stdout
    assert not [*tmp_path.iterdir()]


def test_a_wrong_command_line_is_refused(tmp_path: Path) -> None:
    told = run_to_end(tmp_path, {}, [USERSVC, "swerve"])

    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("Usage: usersvc")
    assert "Traceback" not in told.stderr


# --- settings -------------------------------------------------------------------------------------------------------


UNDER_UVICORN = (*UVICORN, "--port", "0")


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        (SERVE, "USERSVC_DATABASE_URL", "mysql://root:geheim@localhost/users"),
        (UNDER_UVICORN, "USERSVC_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(
    tmp_path: Path, command: Sequence[str], name: str, value: str
) -> None:
    ended = run_to_end(tmp_path, {name: value}, command)

    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert f"{name} accepts " in line
    assert "geheim" not in line
    assert not [*tmp_path.iterdir()]


def test_settings_come_from_a_file_and_the_environment_comes_first(tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_text(
        "USERSVC_DATABASE_URL=sqlite:///from-file.db\nUSERSVC_MAX_BODY_BYTES=nonsense\nUSERSVC_LOG_FORMAT='json'\n"
    )

    with running(tmp_path, {"USERSVC_MAX_BODY_BYTES": "1024"}) as service, service.client() as client:
        register(client)
        assert client.post("/register", json=person(password="x" * 1024)).status_code == 413
        lines = [line for line in service.output.splitlines() if line.startswith("{")]

    assert any("usersvc.access" in json.loads(line)["logger"] for line in lines)
    assert tmp_path.joinpath("from-file.db").exists()
    assert not tmp_path.joinpath("usersvc.db").exists()


def test_every_line_that_a_request_causes_names_it_the_notification_included(tmp_path: Path) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"X-Request-ID": "the-one", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    with running(tmp_path, {"USERSVC_LOG_FORMAT": "json"}) as service, service.client() as client:
        user = client.post("/register", json=person(), headers=headers).json()["data"]
        service.wait_for_output("sent a welcome mail")
        lines = [json.loads(line) for line in service.output.splitlines() if line.startswith("{")]

    access, mail = (line for line in lines if line.get("request_id") == "the-one")
    assert {line["trace_id"] for line in (access, mail)} == {trace}
    assert (access["logger"], access["route"], access["status"]) == ("usersvc.access", "/register", 201)
    assert access["client"] == "127.0.0.1"
    assert user["id"] in mail["message"]
    # One format, whoever writes.
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    assert any(line["logger"].startswith("uvicorn") for line in lines)


def test_a_settings_file_that_cannot_be_read_stops_the_start_with_one_line(tmp_path: Path) -> None:
    tmp_path.joinpath(".env").write_bytes(b"USERSVC_PASSWORD_PEPPER=geh\xe9im-geheim-geheim\n")

    ended = run_to_end(tmp_path, {})

    assert (ended.returncode, ended.stdout) == (2, "")
    [line] = ended.stderr.splitlines()
    assert ".env" in line
    assert "geheim" not in line


def test_a_longer_minimum_for_passwords_is_kept_and_documented(start: StartService) -> None:
    with start(USERSVC_PASSWORD_MIN_LENGTH="15").client() as client:
        refused = client.post("/register", json=person(password="fourteen chars"))
        assert refused.json()["errors"][0]["code"] == "too-short"
        register(client, password="fifteen charac.")
        document = client.get("/openapi.json").json()
        assert document["components"]["schemas"]["Registration"]["properties"]["password"]["minLength"] == 15


def test_users_in_memory_leave_no_file(tmp_path: Path) -> None:
    with running(tmp_path, {"USERSVC_DATABASE_URL": "memory://"}) as service, service.client() as client:
        user = register(client)
        assert client.get("/users").json()["data"] == [user]
        assert client.get("/readyz").status_code == 200

    assert not [*tmp_path.iterdir()]


def test_the_line_that_stands_for_a_mail_is_written_once_at_any_level(start: StartService) -> None:
    service = start(USERSVC_LOG_LEVEL="critical", USERSVC_LOG_FORMAT="json", USERSVC_PORT=str(free_port()))
    with service.client() as client:
        user = register(client)
    service.stop()

    [line] = [json.loads(line) for line in service.output.splitlines() if user["email"] in line]
    assert user["id"] in line["message"]


# --- start ----------------------------------------------------------------------------------------------------------


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


# --- end ------------------------------------------------------------------------------------------------------------


def test_asked_to_stop_it_ends_well(start: StartService) -> None:
    service = start()
    with service.client() as client:
        register(client)

        # The connection stays open, as those of other services do.
        assert service.stop() == 0

    assert "Application shutdown complete" in service.output
    assert "Traceback" not in service.output
    # The write-ahead log is in the file again: a copy of the one file is a copy of everything.
    assert [path.name for path in service.folder.iterdir()] == ["usersvc.db"]


def test_a_registration_in_hand_is_answered_before_the_end(start: StartService) -> None:
    service = start(USERSVC_BCRYPT_COST="12")
    sent = person()
    body = json.dumps(sent).encode()
    with socket.create_connection(service.address, DEADLINE) as connection:
        connection.sendall(
            b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        # The service asks for the body: from now on it has the request in hand.
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        service.ask_to_stop()
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    code = service.ended()

    [response] = read_responses(answer)
    assert response.status == 201
    user = json.loads(response.rest)["data"]
    assert_user(user, sent)
    # People are told before the process is gone.
    assert f"sent a welcome mail to {sent['email']}" in service.output
    assert "Traceback" not in service.output
    assert code == 0
    with start().client() as client:
        assert client.get(f"/users/{user['id']}").json()["data"] == user
