"""The commands that look after the outbox and the database file, as the person who runs the service uses them."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Coroutine
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.server import run_to_end
from usersvc import cli
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application import keyset
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
SECRET = "$hash-that-nobody-sees"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Commands:
    """Runs commands in this process, on a database of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], database: Path) -> None:
        self._capsys = capsys
        self.database = database

    def __call__(self, *arguments: str | Path) -> Outcome:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        assert SECRET not in out + err
        return Outcome(code, out, err)

    def fails(self, *arguments: str | Path) -> str:
        """What a command says that fails, in one line."""
        code, out, err = self(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("usersvc: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err.removeprefix("usersvc: ").rstrip("\n")


@pytest.fixture
def usersvc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    for name in os.environ:
        if name.startswith("USERSVC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///users.db")
    return Commands(capsys, tmp_path / "users.db")


def person(email: str) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash(SECRET), at=NOW)


def fill(database: Path, *emails: str) -> list[OutboxEntry]:
    """Register people, and give what is in the outbox then."""

    async def work() -> list[OutboxEntry]:
        async with SqliteUsers(database) as users:
            for email in emails:
                await users.add(person(email))
            return await users.outbox.entries()

    return run(work())


def run(work: Coroutine[Any, Any, list[OutboxEntry]]) -> list[OutboxEntry]:
    with asyncio.Runner() as runner:
        return runner.run(work)


def fail_first(database: Path, *, for_good: bool, reason: str = "nobody lives there") -> None:
    """Have the first entry tried, without success."""

    async def work() -> list[OutboxEntry]:
        async with SqliteUsers(database) as users:
            [entry] = await users.outbox.lease(now=NOW, until=NOW + timedelta(minutes=1), limit=1)
            if for_good:
                await users.outbox.dead_letter(entry, reason=reason)
            else:
                await users.outbox.reschedule(entry, due_at=NOW + timedelta(days=9999), reason=reason)
            return []

    run(work())


def entries(database: Path) -> list[OutboxEntry]:
    return fill(database)


def test_list_reports_an_empty_outbox_on_standard_error(usersvc: Commands) -> None:
    fill(usersvc.database)
    assert usersvc("outbox", "list") == (0, "", "the outbox is empty\n")


def test_list_prints_one_line_per_mail_without_addresses(usersvc: Commands) -> None:
    alice, bob = fill(usersvc.database, "alice@example.com", "bob@example.com")
    fail_first(usersvc.database, for_good=True)
    code, out, err = usersvc("outbox", "list")

    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{alice.id}\tdead-lettered\tattempts=1\t{alice.event.user_id}\tnobody lives there",
        f"{bob.id}\t2026-01-31T09:30:00.000000Z\tattempts=0\t{bob.event.user_id}\t",
    ]


def test_show_prints_one_mail_as_json(usersvc: Commands) -> None:
    [entry] = fill(usersvc.database, "jörg@bücher.example")
    fail_first(usersvc.database, for_good=True, reason="größer")
    code, out, err = usersvc("outbox", "show", str(entry.id))

    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "id": entry.id,
        "user_id": str(entry.event.user_id),
        "email": "jörg@bücher.example",
        "registered_at": "2026-01-31T09:30:00.000000Z",
        "attempts": 1,
        "due_at": None,
        "dead_lettered": True,
        "reason": "größer",
    }
    assert "jörg" in out


@pytest.mark.parametrize("command", ["show", "retry"])
@pytest.mark.parametrize("entry_id", ["0", "2", "99999999999999999999999"])
def test_a_missing_mail_is_reported(usersvc: Commands, command: str, entry_id: str) -> None:
    fill(usersvc.database, "alice@example.com")
    assert usersvc.fails("outbox", command, entry_id) == f"the outbox has no mail {entry_id}"


def test_retry_makes_a_mail_due_now(usersvc: Commands) -> None:
    before = datetime.now(UTC)
    [entry] = fill(usersvc.database, "alice@example.com")
    fail_first(usersvc.database, for_good=False)
    assert usersvc("outbox", "retry", str(entry.id)) == (0, "1 rescheduled\n", "")

    [waiting] = entries(usersvc.database)
    assert waiting.due_at is not None
    assert before <= waiting.due_at <= datetime.now(UTC)
    assert waiting.attempts == 0


def test_retry_all_reschedules_dead_lettered_mails_only(usersvc: Commands) -> None:
    fill(usersvc.database, "alice@example.com", "bob@example.com", "carol@example.com")
    fail_first(usersvc.database, for_good=True)
    fail_first(usersvc.database, for_good=False)
    assert usersvc("outbox", "retry", "--all") == (0, "1 rescheduled\n", "")

    alice, bob, _ = entries(usersvc.database)
    assert alice.due_at is not None
    assert alice.attempts == 0
    assert bob.due_at == NOW + timedelta(days=9999)
    assert usersvc("outbox", "retry", "--all") == (0, "0 rescheduled\n", "")


def test_an_outbox_of_several_pages_is_read_to_its_end(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    there = fill(usersvc.database, *(f"{name}@example.com" for name in "abcde"))
    for _ in there[:4]:
        fail_first(usersvc.database, for_good=True)
    listed = [line.split("\t")[:2] for line in usersvc("outbox", "list").out.splitlines()]
    assert listed == [
        *([str(entry.id), "dead-lettered"] for entry in there[:4]),
        [str(there[4].id), "2026-01-31T09:30:00.000000Z"],
    ]
    assert json.loads(usersvc("outbox", "show", str(there[3].id)).out)["email"] == "d@example.com"
    assert usersvc("outbox", "retry", "--all") == (0, "4 rescheduled\n", "")


def test_retry_of_a_leased_mail_is_refused(usersvc: Commands) -> None:
    [entry] = fill(usersvc.database, "alice@example.com")

    async def hold() -> list[OutboxEntry]:
        now = datetime.now(UTC)
        async with SqliteUsers(usersvc.database) as users:
            return await users.outbox.lease(now=now, until=now + timedelta(hours=1), limit=1)

    held = run(hold())
    assert usersvc.fails("outbox", "retry", str(entry.id)) == f"mail {entry.id} is being sent"
    assert entries(usersvc.database) == held


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["outbox"],
        ["outbox", "show"],
        ["outbox", "show", "one"],
        ["outbox", "retry"],
        ["outbox", "retry", "1", "--all"],
        ["outbox", "drop"],
        ["db"],
        ["db", "backup"],
        ["db", "check", "users.db"],
    ],
)
def test_wrong_arguments_exit_with_2(usersvc: Commands, arguments: list[str]) -> None:
    code, out, err = usersvc(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("Usage: usersvc")


ON_A_DATABASE = [
    ["outbox", "list"],
    ["outbox", "show", "1"],
    ["outbox", "retry", "1"],
    ["outbox", "retry", "--all"],
    ["db", "backup", "copy.db"],
    ["db", "check"],
]


@pytest.mark.parametrize("arguments", ON_A_DATABASE)
def test_an_invalid_setting_exits_with_2(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("USERSVC_DATABASE_URL", "mysql://user:hunter2@host/db")
    code, out, err = usersvc(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usersvc: USERSVC_DATABASE_URL accepts ")
    assert "hunter2" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", ON_A_DATABASE)
def test_commands_refuse_a_database_in_memory(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("USERSVC_DATABASE_URL", "memory://")
    if arguments[0] == "db":
        expected = "this command needs a SQLite file, which USERSVC_DATABASE_URL does not name"
    else:
        expected = "USERSVC_DATABASE_URL is memory://, which only the service itself can access"
    assert usersvc.fails(*arguments) == expected


@pytest.mark.parametrize("arguments", ON_A_DATABASE)
def test_a_missing_database_is_reported_and_not_created(usersvc: Commands, arguments: list[str]) -> None:
    assert usersvc.fails(*arguments) == f"no database at {usersvc.database}"
    assert list(usersvc.database.parent.iterdir()) == []


@pytest.mark.parametrize("arguments", ON_A_DATABASE)
def test_a_file_that_is_not_a_database_is_reported_and_unchanged(usersvc: Commands, arguments: list[str]) -> None:
    usersvc.database.write_bytes(b"this is no database" * 100)
    assert "file is not a database" in usersvc.fails(*arguments)
    assert usersvc.database.read_bytes() == b"this is no database" * 100
    assert list(usersvc.database.parent.iterdir()) == [usersvc.database]


@pytest.mark.parametrize("arguments", ON_A_DATABASE)
def test_a_newer_schema_is_reported(usersvc: Commands, arguments: list[str]) -> None:
    fill(usersvc.database)
    with closing(sqlite3.connect(usersvc.database)) as file:
        file.execute("PRAGMA user_version = 99")
    if arguments[1] == "backup":
        # A copy is a copy, whoever is to read it.
        assert usersvc(*arguments).code == 0
    else:
        assert "99" in usersvc.fails(*arguments)


def test_backup_writes_one_complete_database(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database, "alice@example.com", "bob@example.com")
    copy = tmp_path / "copy of today.db"
    assert usersvc("db", "backup", copy) == (0, f"saved to {copy}\n", "")

    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("copy")) == [copy.name]
    assert entries(copy) == entries(usersvc.database)


def test_backup_does_not_replace_a_file(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database, "alice@example.com")
    precious = tmp_path / "precious"
    precious.write_text("do not lose me")
    assert usersvc.fails("db", "backup", precious) == f"{precious} exists already"
    assert usersvc.fails("db", "backup", usersvc.database) == f"{usersvc.database} exists already"
    assert usersvc.fails("db", "backup", tmp_path) == f"{tmp_path} exists already"
    assert precious.read_text() == "do not lose me"


def test_backup_to_a_missing_folder_is_reported(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database)
    assert "cannot write" in usersvc.fails("db", "backup", tmp_path / "missing" / "copy.db")


def test_a_backup_is_readable_by_its_owner_only(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database)
    usersvc.database.chmod(0o600)
    usersvc("db", "backup", tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_a_backup_during_writes_is_consistent(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database)
    going_on, enough = threading.Event(), threading.Event()

    async def register_without_end() -> None:
        async with SqliteUsers(usersvc.database) as users:
            number = 0
            while not enough.is_set():
                await users.add(person(f"user{number}@example.com"))
                number += 1
                if number == 20:
                    going_on.set()

    writer = threading.Thread(target=asyncio.run, args=[register_without_end()])
    writer.start()
    try:
        assert going_on.wait(30)
        copies = [tmp_path / f"copy{n}.db" for n in range(5)]
        outcomes = [usersvc("db", "backup", copy) for copy in copies]
    finally:
        enough.set()
        writer.join()

    assert [code for code, *_ in outcomes] == [0] * 5
    sizes = []
    for copy in copies:
        with closing(sqlite3.connect(copy)) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            users = file.execute("SELECT id, position FROM users ORDER BY position").fetchall()
            told = file.execute("SELECT user_id, id FROM outbox ORDER BY id").fetchall()
        # Nobody without an event, no event without a user, and nobody left out.
        assert users == told
        assert [position for _, position in users] == list(range(1, len(users) + 1))
        sizes.append(len(users))
    assert sizes == sorted(sizes)
    assert sizes[0] >= 20


def test_check_prints_ok(usersvc: Commands) -> None:
    fill(usersvc.database, "alice@example.com")
    assert usersvc("db", "check") == (0, "ok\n", "")


def test_check_reports_damage_in_one_line(usersvc: Commands) -> None:
    fill(usersvc.database, *(f"user{n}@example.com" for n in range(300)))
    with closing(sqlite3.connect(usersvc.database)) as file:
        [page_size] = file.execute("PRAGMA page_size").fetchone()
        [pages] = file.execute("PRAGMA page_count").fetchone()
    content = bytearray(usersvc.database.read_bytes())
    for page in range(pages // 2, pages):
        content[page * page_size : page * page_size + 100] = b"\xaa" * 100
    usersvc.database.write_bytes(content)

    told = usersvc.fails("db", "check")
    assert told.startswith(("the database is damaged: ", "cannot read "))


def test_check_finds_rows_missing_in_an_index(usersvc: Commands) -> None:
    fill(usersvc.database, *(f"user{n}@example.com" for n in range(20)))
    with closing(sqlite3.connect(usersvc.database)) as file:
        file.execute("PRAGMA writable_schema = ON")
        file.execute("UPDATE sqlite_schema SET sql = replace(sql, 'due_at)', 'attempts)') WHERE name = 'outbox_due_at'")
        file.commit()

    told = usersvc.fails("db", "check")
    assert told.startswith("the database is damaged: row 1 missing from index outbox_due_at; row 2 ")
    assert told.endswith("; and 16 more")


def test_check_finds_a_missing_table(usersvc: Commands) -> None:
    fill(usersvc.database, "alice@example.com")
    with closing(sqlite3.connect(usersvc.database)) as file:
        file.execute("DROP TABLE outbox")

    told = usersvc.fails("db", "check")
    assert "table outbox is missing or changed" in told


def test_a_backup_does_not_replace_a_file_created_meanwhile(usersvc: Commands, tmp_path: Path) -> None:
    fill(usersvc.database, "alice@example.com")
    notes = tmp_path / "copy.db.unfinished"
    notes.write_text("notes")

    assert usersvc("db", "backup", tmp_path / "copy.db").code == 0
    assert notes.read_text() == "notes"
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


def test_commands_run_as_processes(usersvc: Commands, tmp_path: Path) -> None:
    settings = {"USERSVC_DATABASE_URL": "sqlite:///users.db"}
    command = (sys.executable, "-m", "usersvc")
    missing = run_to_end(tmp_path, settings, (*command, "db", "check"))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr == f"usersvc: no database at {usersvc.database}\n"

    [entry] = fill(usersvc.database, "jörg@example.com")
    checked = run_to_end(tmp_path, settings, (*command, "db", "check"))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "ok\n", "")
    # Not every terminal can show every letter.
    shown = run_to_end(tmp_path, settings | {"PYTHONIOENCODING": "ascii"}, (*command, "outbox", "show", str(entry.id)))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout)["email"] == "jörg@example.com"


def test_a_broken_pipe_is_not_reported(usersvc: Commands) -> None:
    fill(usersvc.database, *(f"user{n}@example.com" for n in range(10)))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        outcome = subprocess.run(
            [sys.executable, "-m", "usersvc", "outbox", "list"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        os.close(writing)
    assert (outcome.returncode, outcome.stderr) == (1, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["outbox", "list"], ["users", "export"], ["config", "check"], ["--version"]])
def test_a_full_disk_behind_standard_output_is_reported_in_one_line(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, unbuffered: str, arguments: list[str]
) -> None:
    fill(usersvc.database, "alice@example.com")
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "usersvc", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    told = "usersvc: standard output or input failed: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, told)


@pytest.mark.parametrize(
    ("line", "ended"),
    [
        ("users export >&-", Outcome(1, "", "usersvc: standard output is closed\n")),
        ("users import --format csv - <&-", Outcome(1, "", "usersvc: standard input is closed\n")),
        ("users show bob@example.com 2>&-", Outcome(1, "", "")),
        ("users list --limit 1 2>&- | wc -l", Outcome(0, "1\n", "")),
    ],
)
def test_closed_standard_streams_are_handled(usersvc: Commands, line: str, ended: Outcome) -> None:
    fill(usersvc.database, "alice@example.com", "carol@example.com")
    found = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m usersvc {line}"], capture_output=True, text=True, check=False
    )
    assert Outcome(found.returncode, found.stdout.strip(" "), found.stderr) == ended


def test_control_characters_of_a_file_name_are_escaped(usersvc: Commands) -> None:
    assert usersvc.fails("users", "import", "no\n\x1b[2Jwhere.csv") == (
        r"cannot read no\n\x1b[2Jwhere.csv: No such file or directory"
    )
