"""`usersvc db copy` as a process: between real databases, killed, stopped, beside the service, on a terminal."""

import asyncio
import os
import pty
import re
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from uuid import UUID, uuid4

import httpx
import pytest

from tests.e2e.api import person, register
from tests.e2e.server import DEADLINE, StartService, environment, free_port, run_to_end, running
from tests.postgres import query
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.copying import AT_ONCE
from usersvc.application.ports import Cause, IdempotencyKey, KeyRecord, OutboxEntry, Places, UserRecord
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash

USERSVC = (sys.executable, "-m", "usersvc")
COPY = (*USERSVC, "db", "copy")
HASH = PasswordHash("$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS")
NOW = datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=UTC)
ENTRIES, KEYS, PLACES = 7, 2 * AT_ONCE + 1, Places(1_000_000, 2_000_000)


def crowd(count: int) -> list[UserRecord]:
    """People with gaps between their positions."""
    return [
        UserRecord(
            position=3 * number,
            id=UUID(int=number),
            email=f"Üser{number}@Example.com",
            mailbox=f"üser{number}@example.com",
            age=18 + number % 100,
            password_hash=HASH,
            registered_at=NOW + timedelta(microseconds=number),
        )
        for number in range(1, count + 1)
    ]


def entries(people: list[UserRecord]) -> list[OutboxEntry]:
    waiting = [
        OutboxEntry(
            id=10 * number,
            event=UserRegistered(user.id, user.email, user.registered_at),
            attempts=number,
            # Not in the years to come.
            due_at=NOW + timedelta(days=50_000, microseconds=number),
            reason=None if number % 2 else f"450 later, {user.age}",
            cause=Cause(f"request-{number}", "a" * 32, "b" * 16) if number % 3 else None,
        )
        for number, user in enumerate(people[:ENTRIES], 1)
    ]
    return [*waiting[:-1], replace(waiting[-1], due_at=None)]


def fill(path: Path, count: int) -> None:
    """A file of many people, with mails that wait, keys, and last positions that nobody has any more."""
    people = crowd(count)

    async def work() -> None:
        async with SqliteUsers(path) as users:
            for begin in range(0, count, AT_ONCE):
                await users.archive.put_users(people[begin : begin + AT_ONCE], instead_of=[])
            await users.archive.put_entries(entries(people), instead_of=[])
            keys = [KeyRecord(IdempotencyKey.named(str(user.id)).digest, user.id, NOW) for user in people[:KEYS]]
            await users.archive.put_keys(keys, instead_of=[])
            await users.archive.put_places(PLACES)

    asyncio.run(work())


def rows(path: Path) -> list[list[tuple[object, ...]]]:
    """Everything that a file holds."""
    with closing(sqlite3.connect(path, timeout=DEADLINE)) as file:
        return [
            file.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
            for table in ("users", "outbox", "idempotency_keys", "sqlite_sequence")
        ]


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, timeout=DEADLINE)) as file, file:
        assert file.execute(statement).rowcount == 1


def copied(folder: Path, source: str, target: str, *options: str, code: int = 0) -> str:
    """What a copy tells, on standard output, or on standard error when it fails."""
    ended = run_to_end(folder, {}, [*COPY, *options, source, target])
    assert ended.returncode == code, ended
    assert "Traceback" not in ended.stderr
    assert (ended.stderr == "") == (code == 0)
    return ended.stdout if code == 0 else ended.stderr


def tallies(told: str) -> list[tuple[int, int, int]]:
    """Copied, already there, removed; of users, outbox entries and keys."""
    found = re.findall(r"^[a-z ]+: (\d+) copied, (\d+) already there, (\d+) removed$", told, re.MULTILINE)
    return [(int(copied), int(there), int(removed)) for copied, there, removed in found]


def checksum(told: str) -> str:
    [found] = re.findall(r"^source and target are the same: .*; SHA-256 ([0-9a-f]{64})$", told, re.MULTILINE)
    assert isinstance(found, str)
    return found


@contextmanager
def copying(folder: Path, source: str, target: str) -> Iterator["subprocess.Popen[str]"]:
    """A copy that runs."""
    process = subprocess.Popen(
        [*COPY, source, target],
        cwd=folder,
        env=environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def in_postgres(url: str) -> int:
    [count] = query(url, "SELECT count(*) FROM users")
    return int(count)


def in_file(path: Path) -> int:
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path, timeout=DEADLINE)) as file:
        try:
            [count] = file.execute("SELECT count(*) FROM users").fetchone()
        except sqlite3.OperationalError:
            # The tables are not there yet.
            return 0
    return int(count)


def listed_from(client: httpx.Client, link: str | None) -> list[str]:
    """Ids, from a page on to the last."""
    ids: list[str] = []
    while link is not None:
        document = client.get(link).json()
        ids += [user["id"] for user in document["data"]]
        link = document["links"]["next"]
    return ids


# --- from one kind to the other -------------------------------------------------------------------------------------


def test_from_a_file_to_postgresql_and_back_everything_is_as_it_was(tmp_path: Path, postgres_url: str) -> None:
    count = 2 * AT_ONCE + 7
    fill(tmp_path / "first.db", count)
    there = copied(tmp_path, "sqlite:///first.db", postgres_url)
    back = copied(tmp_path, postgres_url, "sqlite:///last.db")
    again = copied(tmp_path, "sqlite:///last.db", "sqlite:///one-more.db")

    assert tallies(there) == tallies(back) == [(count, 0, 0), (ENTRIES, 0, 0), (KEYS, 0, 0)]
    assert checksum(there) == checksum(back) == checksum(again)
    assert rows(tmp_path / "last.db") == rows(tmp_path / "one-more.db") == rows(tmp_path / "first.db")
    assert (tmp_path / "last.db").stat().st_mode & 0o077 == 0
    assert query(postgres_url, "SELECT last_value FROM users_position") == [PLACES.position]
    assert query(postgres_url, "SELECT last_value FROM outbox_id_seq") == [PLACES.entry]
    assert run_to_end(tmp_path, {}, [*USERSVC, "db", "check"]).returncode == 1
    database = {"USERSVC_DATABASE_URL": "sqlite:///last.db"}
    assert run_to_end(tmp_path, database, [*USERSVC, "db", "check"]).stdout == "ok\n"
    assert checksum(copied(tmp_path, postgres_url, "sqlite:///first.db", "--verify")) == checksum(there)


def test_a_service_goes_on_with_the_copy(start: StartService, tmp_path: Path, postgres_url: str) -> None:
    # No mail server is there.
    mail = {"USERSVC_SMTP_URL": f"smtp://127.0.0.1:{free_port()}", "USERSVC_MAIL_FROM": "us@example.com"}
    before = start(**mail)
    body, key = person(), {"Idempotency-Key": str(uuid4())}
    with before.client() as client:
        for _ in range(3):
            register(client)
        first = client.post("/register", json=body, headers=key)
        listed = listed_from(client, "/users?limit=2")
        cursor = client.get("/users?limit=3").json()["links"]["next"]
        newest = register(client)
    before.wait_for_output("failed", 5)
    before.stop()
    assert run_to_end(tmp_path, {}, [*USERSVC, "users", "delete", "--yes", newest["id"]]).returncode == 0
    copied(tmp_path, "sqlite:///usersvc.db", postgres_url)

    with running(tmp_path, {"USERSVC_DATABASE_URL": postgres_url}) as after, after.client() as client:
        assert listed_from(client, "/users?limit=2") == listed
        # A cursor that a client holds is still good.
        assert listed_from(client, cursor) == listed[3:]
        repeated = client.post("/register", json=body, headers=key)
        assert (repeated.content, repeated.headers["Idempotency-Replayed"]) == (first.content, "true")
        assert client.post("/register", json=body).status_code == 409
        told = after.wait_for_output(r"sent a welcome mail to \S+ for user (\S+)", 4)
        assert sorted(told) == sorted(listed)
        register(client)
    [*_, last] = query(postgres_url, "SELECT position FROM users ORDER BY position")
    # Not the place of who was removed; one of those behind it went to who was refused.
    assert last > 5

    # From here on the file knows less.
    assert "in use" in copied(tmp_path, "sqlite:///usersvc.db", postgres_url, code=1)


def test_a_target_on_which_a_service_runs_is_left_alone_though_it_is_empty(tmp_path: Path, postgres_url: str) -> None:
    fill(tmp_path / "usersvc.db", 5)
    with running(tmp_path, {"USERSVC_DATABASE_URL": postgres_url}) as service, service.client() as client:
        assert client.get("/readyz").status_code == 200
        deadline = time.monotonic() + DEADLINE
        listens = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'usersvc listening'"
        while query(postgres_url, f"{listens} AND datname = current_database()") != [1]:
            assert time.monotonic() < deadline
        assert "a service runs on it" in copied(tmp_path, "sqlite:///usersvc.db", postgres_url, code=1)
        somebody = register(client)
        assert client.get("/users").json()["data"] == [somebody]
        service.stop()
    # What has been registered there is still not overwritten.
    assert "in use" in copied(tmp_path, "sqlite:///usersvc.db", postgres_url, code=1)


# --- stopped, and run again -----------------------------------------------------------------------------------------


def test_a_copy_that_was_killed_goes_on_where_it_was(tmp_path: Path, postgres_url: str) -> None:
    count = 12 * AT_ONCE
    fill(tmp_path / "usersvc.db", count)
    with copying(tmp_path, "sqlite:///usersvc.db", postgres_url) as process:
        wait_until(lambda: in_postgres(postgres_url) >= 2 * AT_ONCE)
        process.kill()
        process.wait(DEADLINE)
    # What was just being stored is stored or not.
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    wait_until(lambda: query(postgres_url, others) == [])
    before = in_postgres(postgres_url)
    assert before % AT_ONCE == 0
    assert 0 < before < count

    # Nobody is let in before it is whole.
    for workers in ("1", "2"):
        settings = {"USERSVC_DATABASE_URL": postgres_url, "USERSVC_WORKERS": workers}
        refused = run_to_end(tmp_path, settings)
        assert refused.returncode == 3
        assert "copy that is not finished: run usersvc db copy" in refused.stdout + refused.stderr

    again = copied(tmp_path, "sqlite:///usersvc.db", postgres_url)
    assert tallies(again)[0] == (count - before, before, 0)
    assert checksum(again) == checksum(copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///whole.db"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_copy_that_was_stopped_says_how_far_it_came(tmp_path: Path, number: signal.Signals) -> None:
    count = 12 * AT_ONCE
    fill(tmp_path / "usersvc.db", count)
    with copying(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db") as process:
        wait_until(lambda: in_file(tmp_path / "target.db") >= 2 * AT_ONCE)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)
    before = in_file(tmp_path / "target.db")
    assert process.returncode == 128 + number
    assert out == ""
    assert err == (
        f"usersvc: stopped; {before} of {count} users are there; the same command again goes on from there\n"
    )
    assert 0 < before < count
    again = copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db")
    assert tallies(again)[0] == (count - before, before, 0)
    assert rows(tmp_path / "target.db") == rows(tmp_path / "usersvc.db")


# --- beside the service ---------------------------------------------------------------------------------------------


def test_the_source_serves_meanwhile_and_is_caught_up_with(start: StartService, postgres_url: str) -> None:
    service = start()
    fill(service.folder / "many.db", 10 * AT_ONCE)
    service.stop()
    copied(service.folder, "sqlite:///many.db", "sqlite:///source.db")
    service = start(USERSVC_DATABASE_URL="sqlite:///source.db")
    registered = []
    with service.client() as client, copying(service.folder, "sqlite:///source.db", postgres_url) as process:
        while process.poll() is None:
            registered.append(register(client)["id"])
        # The same, or told as different, as it happens.
        assert process.returncode in {0, 1}
        registered.append(register(client)["id"])
    # Everybody has been told by the source, but for the one whose mail is set aside.
    service.wait_for_output("sent a welcome mail", len(registered) + ENTRIES - 1)
    service.stop()
    gone = registered.pop(0)
    source = {"USERSVC_DATABASE_URL": "sqlite:///source.db"}
    assert run_to_end(service.folder, source, [*USERSVC, "users", "delete", "--yes", gone]).returncode == 0
    assert "source and target differ" in copied(service.folder, "sqlite:///source.db", postgres_url, "--verify", code=1)

    told = copied(service.folder, "sqlite:///source.db", postgres_url)
    assert checksum(told)
    assert tallies(told)[0][1] >= 10 * AT_ONCE
    assert in_postgres(postgres_url) == 10 * AT_ONCE + len(registered)
    # Nobody is told again.
    assert query(postgres_url, "SELECT count(*) FROM outbox") == [1]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE users SET password_hash = 'mine' WHERE position = 9", "20 users each, with different checksums"),
        ("DELETE FROM users WHERE position = 9", "20 users and 19; "),
        ("UPDATE outbox SET due_at = '2026-01-31T09:30:00.000000Z' WHERE id = 20", "7 outbox entries each"),
        ("UPDATE idempotency_keys SET used_at = '2099' || substr(used_at, 5) WHERE rowid = 1", "keys each"),
        ("UPDATE sqlite_sequence SET seq = 60 WHERE name = 'users'", "would give out positions again"),
    ],
)
def test_a_copy_that_was_tampered_with_is_noticed(tmp_path: Path, statement: str, told: str) -> None:
    fill(tmp_path / "usersvc.db", 20)
    copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db")
    copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db", "--verify")
    if "rowid" in statement:
        statement = statement.replace("rowid = 1", "digest = (SELECT min(digest) FROM idempotency_keys)")
    change(tmp_path / "target.db", statement)
    line = copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db", "--verify", code=1)
    assert line.startswith("usersvc: source and target differ: ")
    assert line.count("\n") == 1
    assert told in line
    assert HASH not in line


def test_a_user_who_was_changed_in_the_copy_stops_it(tmp_path: Path) -> None:
    fill(tmp_path / "usersvc.db", 20)
    copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db")
    change(tmp_path / "target.db", "UPDATE users SET password_hash = 'mine' WHERE position = 9")
    told = copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db", code=1)
    assert told == "usersvc: the target holds users whom the source has never held\n"
    change(tmp_path / "target.db", f"UPDATE users SET password_hash = '{HASH}' WHERE position = 9")
    copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db")


def test_what_is_no_source_and_no_target_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "usersvc.db", 3)
    (tmp_path / "link.db").symlink_to("usersvc.db")
    assert "same file" in copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///link.db", code=1)
    assert "no database" in copied(tmp_path, "sqlite:///missing.db", "sqlite:///target.db", code=1)
    assert "no database" in copied(tmp_path, "sqlite:///usersvc.db", "sqlite:///target.db", "--verify", code=1)
    for arguments in (
        ("memory://", "sqlite:///target.db"),
        ("sqlite:///usersvc.db", "memory://"),
        ("", "sqlite:///target.db"),
        ("sqlite:///usersvc.db", "env:USERSVC_TEST_NOTHING"),
        ("sqlite:///usersvc.db", "@missing.txt"),
        ("sqlite:///usersvc.db", "mysql://root:S3cr3t-pass@localhost/users"),
    ):
        told = copied(tmp_path, *arguments, code=2)
        assert "S3cr3t-pass" not in told
        assert "_URL " in told
    assert not (tmp_path / "target.db").exists()
    assert not (tmp_path / "missing.db").exists()


# --- URLs and passwords ---------------------------------------------------------------------------------------------


def test_urls_may_be_in_files_and_variables(tmp_path: Path) -> None:
    fill(tmp_path / "usersvc.db", 3)
    (tmp_path / "target.txt").write_text("sqlite:///target.db\n")
    told = run_to_end(
        tmp_path,
        {"USERSVC_DATABASE_URL": "sqlite:///usersvc.db"},
        [*COPY, "env:USERSVC_DATABASE_URL", "@target.txt"],
    )
    assert (told.returncode, told.stderr) == (0, "")
    (tmp_path / ".env").write_text("SECOND=sqlite:///second.db\n")
    assert checksum(told.stdout) == checksum(copied(tmp_path, "@target.txt", "env:SECOND"))


class _Asking:
    """A server that asks for the password and then knows nobody."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.told: list[bytes] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE)
        self._listener.close()

    def _ask(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            stream.read(int.from_bytes(stream.read(4)) - 4)
            # AuthenticationCleartextPassword
            connection.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
            stream.read(1)
            self.told.append(stream.read(int.from_bytes(stream.read(4)) - 4).rstrip(b"\0"))
            fields = b"SFATAL\0C28P01\0Mno way in for that password\0\0"
            connection.sendall(b"E" + (4 + len(fields)).to_bytes(4) + fields)


@pytest.mark.parametrize("way", ["URL", "PGPASSWORD", "PGPASSFILE"])
def test_passwords_may_stay_out_of_urls_and_are_never_told(tmp_path: Path, way: str) -> None:
    fill(tmp_path / "usersvc.db", 3)
    with _Asking() as server:
        passwords = tmp_path / "passwords"
        passwords.write_text(f"127.0.0.1:{server.port}:users:somebody:S3cr3t p@ss\n")
        passwords.chmod(0o600)
        settings = {
            "URL": {},
            "PGPASSWORD": {"PGPASSWORD": "S3cr3t p@ss"},
            "PGPASSFILE": {"PGPASSFILE": str(passwords)},
        }[way]
        user = "somebody:S3cr3t%20p%40ss" if way == "URL" else "somebody"
        url = f"postgresql://{user}@127.0.0.1:{server.port}/users?sslmode=disable"
        ended = run_to_end(tmp_path, settings, [*COPY, "sqlite:///usersvc.db", url])
    assert server.told == [b"S3cr3t p@ss"]
    assert ended.returncode == 1
    assert ended.stderr.startswith("usersvc: PostgreSQL: ")
    assert "S3cr3t" not in ended.stdout + ended.stderr


def test_a_person_at_a_terminal_sees_bars(tmp_path: Path) -> None:
    fill(tmp_path / "usersvc.db", 20)
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COPY, "sqlite:///usersvc.db", "sqlite:///target.db"],
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
    assert re.search(r"copying .*100%.*verifying .*100%", shown, re.DOTALL)
    assert b"%" not in out
