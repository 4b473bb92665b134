"""Imports and exports as processes: killed, stopped, and beside a running service."""

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
from tests.integration.commands import HASH, people
from tests.postgres import query
from usersvc.application.user_import import STORED_AT_ONCE

USERSVC = (sys.executable, "-m", "usersvc")
MANY = 16 * STORED_AT_ONCE


def count_users(folder: Path, url: str = "sqlite:///usersvc.db") -> int:
    if url.startswith("postgres"):
        [count] = query(url, "SELECT count(*) FROM users")
        return int(count)
    name = url.removeprefix("sqlite:///")
    try:
        with closing(sqlite3.connect(f"file:{folder}/{name}?mode=ro", uri=True, timeout=DEADLINE)) as file:
            return int(file.execute("SELECT count(*) FROM users").fetchone()[0])
    except sqlite3.OperationalError:
        # The file or the tables are not there yet.
        return 0


def wait_until_stored(folder: Path, least: int, url: str = "sqlite:///usersvc.db") -> None:
    deadline = time.monotonic() + DEADLINE
    while count_users(folder, url) < least:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextmanager
def importing(folder: Path, *arguments: str, url: str = "sqlite:///usersvc.db") -> Iterator["subprocess.Popen[str]"]:
    """A running import."""
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


def usersvc(folder: Path, *arguments: str, url: str = "sqlite:///usersvc.db") -> str:
    ended = run_to_end(folder, {"USERSVC_DATABASE_URL": url}, [*USERSVC, *arguments])
    assert ended.returncode == 0, ended
    return ended.stdout


def test_users_move_between_storages_unchanged_even_if_the_import_is_killed(tmp_path: Path, postgres_url: str) -> None:
    count = 8 * STORED_AT_ONCE
    odd = f'1970-01-01T00:00:00.000001Z,0B9F6F1C-58AB-4F5C-9D5F-0F6B9A3A3A3A,130,{HASH},"""a,;b""@Bücher.example"\n'
    tmp_path.joinpath("odd.csv").write_text("registered_at,id,age,password_hash,email\n" + odd, "utf-8")
    tmp_path.joinpath("people.csv").write_text(people(count))
    usersvc(tmp_path, "users", "import", "people.csv")
    usersvc(tmp_path, "users", "import", "odd.csv")
    usersvc(tmp_path, "users", "export", "--with-password-hashes", "first.ndjson")

    for source, url, target in (
        ("first.ndjson", postgres_url, "second.csv"),
        ("second.csv", "sqlite:///last.db", "last.ndjson"),
    ):
        with importing(tmp_path, source, url=url) as process:
            wait_until_stored(tmp_path, STORED_AT_ONCE, url)
            process.kill()
            process.wait(DEADLINE)
        before = count_users(tmp_path, url)
        # Whole batches, and not all of them.
        assert (before % STORED_AT_ONCE, 0 < before < count) == (0, True)
        summary = f"{count + 1 - before} imported, {before} already there, 0 rejected\n"
        assert usersvc(tmp_path, "users", "import", source, url=url) == summary
        usersvc(tmp_path, "users", "export", "--with-password-hashes", target, url=url)

    moved = tmp_path.joinpath("first.ndjson").read_bytes()
    assert moved.count(b"\n") == count + 1
    assert tmp_path.joinpath("last.ndjson").read_bytes() == moved
    assert query(postgres_url, "SELECT count(*) FROM outbox") == [0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_waits_for_input_stops_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with importing(tmp_path, "--format", "csv", "-") as process:
        assert process.stdin is not None
        process.stdin.write(people(2 * STORED_AT_ONCE))
        process.stdin.flush()
        wait_until_stored(tmp_path, 2 * STORED_AT_ONCE)
        process.send_signal(number)
        # Its input is still open.
        assert process.wait(DEADLINE) == 128 + number
    assert count_users(tmp_path) == 2 * STORED_AT_ONCE


def test_users_register_during_an_import(start: StartService) -> None:
    service = start()
    service.folder.joinpath("users.csv").write_text(people(MANY))
    registered = 0
    with service.client() as client, importing(service.folder, "users.csv") as process:
        wait_until_stored(service.folder, STORED_AT_ONCE)
        while process.poll() is None:
            assert client.post("/register", json=person()).status_code == 201
            registered += 1
        assert process.returncode == 0
    assert registered > 0
    assert count_users(service.folder) == MANY + registered


def test_the_console_script_imports_nothing_that_only_the_service_needs(tmp_path: Path) -> None:
    heavy = ["uvicorn", "aiohttp", "aiosqlite", "marshmallow", "structlog", "prometheus_client", "asyncio"]
    script = f"import sys, usersvc.cli; print(*(name for name in {heavy} if name in sys.modules))"
    assert run_to_end(tmp_path, {}, [sys.executable, "-c", script]).stdout == "\n"
