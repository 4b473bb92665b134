"""Imports and exports as processes: killed, stopped, beside the service that runs, and on a terminal."""

import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.api import person
from tests.e2e.server import DEADLINE, StartService, environment, run_to_end
from tests.postgres import query
from usersvc.application.user_import import STORED_AT_ONCE

USERSVC = (sys.executable, "-m", "usersvc")
HEAD = "email,age,password_hash\n"
HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
MANY = 16 * STORED_AT_ONCE


def people(count: int, *, first: int = 0) -> str:
    return "".join(f"person{n}@example.com,30,{HASH}\n" for n in range(first, first + count))


def stored(folder: Path, postgres_url: str | None = None) -> int:
    """How many users there are just now."""
    if postgres_url is not None:
        [count] = query(postgres_url, "SELECT count(*) FROM users")
        return int(count)
    database = folder / "usersvc.db"
    if not database.exists():
        return 0
    with closing(sqlite3.connect(database, timeout=DEADLINE)) as file:
        try:
            [count] = file.execute("SELECT count(*) FROM users").fetchone()
        except sqlite3.OperationalError:
            # The tables are not there yet.
            return 0
    return int(count)


def wait_until_stored(folder: Path, least: int, postgres_url: str | None = None) -> None:
    deadline = time.monotonic() + DEADLINE
    while stored(folder, postgres_url) < least:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def importing(folder: Path, *arguments: str, url: str = "sqlite:///usersvc.db") -> Iterator["subprocess.Popen[str]"]:
    """An import that runs."""
    process = subprocess.Popen(
        [*USERSVC, "users", "import", *arguments],
        cwd=folder,
        env=environment({"USERSVC_DATABASE_URL": url}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_an_import_that_was_killed_is_taken_up_by_the_same_command(tmp_path: Path) -> None:
    tmp_path.joinpath("users.csv").write_text(HEAD + people(MANY))
    with importing(tmp_path, "users.csv") as process:
        wait_until_stored(tmp_path, 3 * STORED_AT_ONCE)
        process.kill()
        process.wait(DEADLINE)
    before = stored(tmp_path)
    # Whole batches, and not all of them: else this has shown nothing.
    assert before % STORED_AT_ONCE == 0
    assert 0 < before < MANY

    again = run_to_end(tmp_path, {}, [*USERSVC, "users", "import", "users.csv"])
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == f"{MANY - before} imported, {before} already there, 0 rejected\n"
    assert stored(tmp_path) == MANY
    assert run_to_end(tmp_path, {}, [*USERSVC, "db", "check"]).stdout == "ok\n"


def test_users_move_between_storages_unchanged_even_if_the_import_is_killed(tmp_path: Path, postgres_url: str) -> None:
    def usersvc(url: str, *arguments: str) -> str:
        ended = run_to_end(tmp_path, {"USERSVC_DATABASE_URL": url}, [*USERSVC, "users", *arguments])
        assert ended.returncode == 0, ended
        return ended.stdout

    count = 8 * STORED_AT_ONCE
    first, last = "sqlite:///usersvc.db", "sqlite:///last.db"
    odd = f'1970-01-01T00:00:00.000001Z,0B9F6F1C-58AB-4F5C-9D5F-0F6B9A3A3A3A,130,{HASH},"""a,;b""@Bücher.example"\n'
    tmp_path.joinpath("odd.csv").write_text("registered_at,id,age,password_hash,email\n" + odd, "utf-8")
    tmp_path.joinpath("people.csv").write_text(HEAD + people(count))
    usersvc(first, "import", "people.csv")
    usersvc(first, "import", "odd.csv")
    usersvc(first, "export", "--with-password-hashes", "first.ndjson")

    with importing(tmp_path, "first.ndjson", url=postgres_url) as process:
        wait_until_stored(tmp_path, STORED_AT_ONCE, postgres_url)
        process.kill()
        process.wait(DEADLINE)
    told = usersvc(postgres_url, "import", "first.ndjson")
    imported, there = map(int, re.findall(r"(\d+) imported, (\d+) already there, 0 rejected", told)[0])
    assert (imported + there, imported > 0, there > 0) == (count + 1, True, True)
    usersvc(postgres_url, "export", "--with-password-hashes", "second.csv")
    usersvc(last, "import", "second.csv")
    usersvc(postgres_url, "export", "--with-password-hashes", "second.ndjson")
    usersvc(last, "export", "--with-password-hashes", "last.ndjson")

    moved = tmp_path.joinpath("first.ndjson").read_bytes()
    assert moved.count(b"\n") == count + 1
    assert tmp_path.joinpath("second.ndjson").read_bytes() == moved
    assert tmp_path.joinpath("last.ndjson").read_bytes() == moved
    assert query(postgres_url, "SELECT count(*) FROM outbox") == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_waits_for_its_input_stops_at_once_and_says_how_far_it_came(
    tmp_path: Path, number: signal.Signals
) -> None:
    with importing(tmp_path, "--format", "csv", "-") as process:
        assert process.stdin is not None
        process.stdin.write(HEAD + people(2 * STORED_AT_ONCE + 10))
        process.stdin.flush()
        wait_until_stored(tmp_path, 2 * STORED_AT_ONCE)
        process.send_signal(number)
        # Its input is still open.
        assert process.wait(DEADLINE) == 128 + number
        assert process.stderr is not None
        assert process.stderr.read() == (
            f"usersvc: stopped; {2 * STORED_AT_ONCE} imported, 0 already there, 0 rejected; "
            "run the command again to import the rest\n"
        )
    assert stored(tmp_path) == 2 * STORED_AT_ONCE


def test_people_register_while_others_are_imported(start: StartService) -> None:
    service = start()
    service.folder.joinpath("users.csv").write_text(HEAD + people(MANY))
    registered = 0
    with service.client() as client, importing(service.folder, "users.csv") as process:
        wait_until_stored(service.folder, STORED_AT_ONCE)
        while process.poll() is None:
            assert client.post("/register", json=person()).status_code == 201
            registered += 1
        assert process.returncode == 0
    assert registered > 0
    assert stored(service.folder) == MANY + registered


def test_a_reader_of_an_export_who_has_seen_enough_is_no_failure_to_tell_of(tmp_path: Path) -> None:
    tmp_path.joinpath("users.csv").write_text(HEAD + people(4 * STORED_AT_ONCE))
    assert run_to_end(tmp_path, {}, [*USERSVC, "users", "import", "users.csv"]).returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [*USERSVC, "users", "export"],
            cwd=tmp_path,
            env=environment({}),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize(
    ("arguments", "label"),
    [(["import", "users.csv"], "importing"), (["export", "copy.ndjson"], "exporting")],
)
def test_a_person_at_a_terminal_sees_a_bar(tmp_path: Path, arguments: list[str], label: str) -> None:
    tmp_path.joinpath("users.csv").write_text(HEAD + people(10))
    assert run_to_end(tmp_path, {}, [*USERSVC, "users", "import", "users.csv"]).stderr == ""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*USERSVC, "users", *arguments],
            cwd=tmp_path,
            env=environment({"TERM": "xterm"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
        out, _ = process.communicate(timeout=DEADLINE)
        shown = os.read(ours, 65536).decode() if select.select([ours], [], [], 0)[0] else ""
    finally:
        os.close(ours)
        os.close(theirs)
    assert process.returncode == 0
    assert label in shown
    assert "100%" in shown
    # Data and nothing else.
    assert b"%" not in out


def test_a_command_imports_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    heavy = ["uvicorn", "aiohttp", "aiosqlite", "marshmallow", "structlog", "prometheus_client", "asyncio"]
    told = run_to_end(
        tmp_path,
        {},
        [
            sys.executable,
            "-c",
            f"import sys, usersvc.cli; print(*(name for name in {heavy} if name in sys.modules))",
        ],
    )
    assert (told.returncode, told.stdout.strip(), told.stderr) == (0, "", "")
