"""The console script: what all commands have in common, and those for the outbox and the database file."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ID, NOW, Commands, Outcome, people
from tests.unit.test_documentation import COMMANDS
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application import keyset
from usersvc.config import Settings


def fail_first(usersvc: Commands, *, dead_letter: bool, reason: str = "mailbox unavailable") -> None:
    """Record a failed attempt of the first mail that is due."""

    async def work(users: SqliteUsers) -> None:
        [entry] = await users.outbox.lease(now=NOW, until=NOW + timedelta(minutes=1), limit=1)
        if dead_letter:
            await users.outbox.dead_letter(entry, reason=reason)
        else:
            await users.outbox.reschedule(entry, due_at=NOW + timedelta(days=9999), reason=reason)

    usersvc.on_store(work)


# --- outbox ---------------------------------------------------------------------------------------------------------


def test_list_prints_one_line_per_mail_without_addresses(usersvc: Commands) -> None:
    usersvc.register()
    assert usersvc("outbox", "list") == (0, "", "the outbox is empty\n")
    usersvc.register("alice@example.com", "bob@example.com")
    fail_first(usersvc, dead_letter=True)
    alice, bob = usersvc.outbox()
    code, out, err = usersvc("outbox", "list")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{alice.id}\tdead-lettered\tattempts=1\t{alice.event.user_id}\tmailbox unavailable",
        f"{bob.id}\t2026-01-31T09:30:00.000000Z\tattempts=0\t{bob.event.user_id}\t",
    ]
    as_json = [json.loads(line) for line in usersvc("outbox", "list", "--json").out.splitlines()]
    assert [document["email"] for document in as_json] == ["alice@example.com", "bob@example.com"]


def test_show_prints_one_mail_as_json(usersvc: Commands) -> None:
    usersvc.register("jörg@bücher.example")
    fail_first(usersvc, dead_letter=True, reason="größer")
    [entry] = usersvc.outbox()
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
    usersvc.register("alice@example.com")
    assert usersvc.fails("outbox", command, entry_id) == f"the outbox has no mail {entry_id}"


def test_retry_makes_a_mail_due_now(usersvc: Commands) -> None:
    before = datetime.now(UTC)
    usersvc.register("alice@example.com")
    fail_first(usersvc, dead_letter=False)
    assert usersvc("outbox", "retry", str(usersvc.outbox()[0].id)) == (0, "1 rescheduled\n", "")
    [entry] = usersvc.outbox()
    assert entry.due_at is not None
    assert before <= entry.due_at <= datetime.now(UTC)
    assert entry.attempts == 0


def test_retry_all_reschedules_dead_lettered_mails_on_all_pages(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "BATCH", 2)
    usersvc.register(*(f"{name}@example.com" for name in "abcde"))
    for dead_letter in (True, False, True, True):
        fail_first(usersvc, dead_letter=dead_letter)
    assert usersvc("outbox", "retry", "--all") == (0, "3 rescheduled\n", "")
    assert [entry.attempts for entry in usersvc.outbox()] == [0, 1, 0, 0, 0]
    assert usersvc("outbox", "retry", "--all") == (0, "0 rescheduled\n", "")


def test_retry_of_a_leased_mail_is_refused(usersvc: Commands) -> None:
    usersvc.register("alice@example.com")
    now = datetime.now(UTC)
    leased = usersvc.on_store(lambda users: users.outbox.lease(now=now, until=now + timedelta(hours=1), limit=1))
    assert usersvc.fails("outbox", "retry", str(leased[0].id)) == f"mail {leased[0].id} is being sent"
    assert usersvc.outbox() == leased


# --- all commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", "outbox retry", "outbox retry 1 --all", "outbox drop", "db check users.db"])
def test_wrong_arguments_exit_with_2(usersvc: Commands, arguments: str) -> None:
    usersvc.register()
    code, out, err = usersvc(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("Usage: usersvc")


DB = ["db backup copy.db", "db check"]
ON_A_STORE = [
    "outbox list",
    "outbox retry --all",
    f"users show {ID}",
    f"users delete --yes {ID}",
    "users export copy.csv",
]
IMPORT = "users import people.csv"


@pytest.mark.parametrize("arguments", [*DB, *ON_A_STORE, IMPORT])
def test_an_unusable_database_is_reported_in_one_line_and_left_unchanged(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    command = arguments.split()
    file = usersvc.write("people.csv", people(1))
    monkeypatch.setenv("USERSVC_DATABASE_URL", "memory://")
    assert usersvc.fails(*command) == (
        "this command needs a SQLite file, which USERSVC_DATABASE_URL does not name"
        if arguments in DB
        else "USERSVC_DATABASE_URL is memory://, which only the service itself can access"
    )
    monkeypatch.setenv("USERSVC_DATABASE_URL", "mysql://user:hunter2@host/db")
    code, out, err = usersvc(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("usersvc: USERSVC_DATABASE_URL accepts ")
    assert "hunter2" not in err

    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///users.db")
    if arguments != IMPORT:
        assert usersvc.fails(*command) == f"no database at {usersvc.database}"
        assert [*usersvc.folder.iterdir()] == [file]
    usersvc.database.write_bytes(b"not a database" * 100)
    assert "file is not a database" in usersvc.fails(*command)
    assert usersvc.database.read_bytes() == b"not a database" * 100
    assert {*usersvc.folder.iterdir()} == {file, usersvc.database}


def test_a_newer_schema_is_reported_but_can_be_backed_up(usersvc: Commands) -> None:
    usersvc.register()
    with closing(sqlite3.connect(usersvc.database)) as file:
        file.execute("PRAGMA user_version = 99")
    assert "99" in usersvc.fails("db", "check")
    assert "99" in usersvc.fails("outbox", "list")
    assert usersvc("db", "backup", "copy.db").code == 0


# --- db -------------------------------------------------------------------------------------------------------------


def test_backup_writes_one_complete_database_for_its_owner_only(usersvc: Commands) -> None:
    usersvc.register("alice@example.com", "bob@example.com")
    before, expected = {*usersvc.folder.iterdir()}, usersvc.outbox()
    usersvc.database.chmod(0o644)
    copy = usersvc.folder / "copy of today.db"
    assert usersvc("db", "backup", copy) == (0, f"saved to {copy}\n", "")
    assert {*usersvc.folder.iterdir()} == before | {copy}
    assert copy.stat().st_mode & 0o777 == 0o600
    usersvc.database = copy
    assert usersvc.outbox() == expected


def test_backup_does_not_replace_a_file(usersvc: Commands) -> None:
    usersvc.register("alice@example.com")
    precious = usersvc.write("precious", "do not lose me")
    for path in (precious, usersvc.database, usersvc.folder):
        assert usersvc.fails("db", "backup", path) == f"{path} exists already"
    assert precious.read_text() == "do not lose me"
    assert "cannot write" in usersvc.fails("db", "backup", usersvc.folder / "missing" / "copy.db")


OTHER_INDEX = "UPDATE sqlite_schema SET sql = replace(sql, 'due_at)', 'attempts)') WHERE name = 'outbox_due_at'"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (OTHER_INDEX, r"^the database is damaged \(21 findings\): row 1 missing from index outbox_.*; row 5 [^;]*$"),
        ("DROP TABLE outbox", "table outbox is missing or changed"),
    ],
)
def test_check_reports_damage_in_one_line(usersvc: Commands, damage: str, message: str) -> None:
    usersvc.register(*(f"user{n}@example.com" for n in range(20)))
    assert usersvc("db", "check") == (0, "ok\n", "")
    with closing(sqlite3.connect(usersvc.database)) as file:
        file.execute("PRAGMA writable_schema = ON")
        file.execute(damage)
        file.commit()
    assert re.search(message, usersvc.fails("db", "check"))


def test_ctrl_c_exits_with_130(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "from_environment", lambda _: signal.raise_signal(signal.SIGINT))
    assert usersvc("config", "check") == (130, "", "\nusersvc: stopped\n")


# --- the process ----------------------------------------------------------------------------------------------------


def run(arguments: list[str], **options: Any) -> Outcome:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    ended = subprocess.run([sys.executable, "-m", "usersvc", *arguments], text=True, check=False, timeout=30, **streams)
    return Outcome(ended.returncode, ended.stdout or "", ended.stderr)


def test_json_is_readable_in_any_encoding_of_the_terminal(usersvc: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    usersvc.register("jörg@example.com")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    code, out, err = run(["outbox", "list", "--json"])
    assert (code, json.loads(out)["email"], err) == (0, "jörg@example.com", "")


@pytest.mark.parametrize("arguments", ["outbox list", "users export"])
def test_a_broken_pipe_is_not_reported(usersvc: Commands, arguments: str) -> None:
    usersvc.register(*(f"user{n}@example.com" for n in range(10)))
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(arguments.split(), stdout=writing) == (1, "", "")
    finally:
        os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["outbox list", "users export", "config check", "--version"])
def test_a_full_disk_behind_standard_output_is_reported_in_one_line(
    usersvc: Commands, monkeypatch: pytest.MonkeyPatch, unbuffered: str, arguments: str
) -> None:
    usersvc.register("alice@example.com")
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w") as full:
        ended = run(arguments.split(), stdout=full)
    assert ended == (1, "", "usersvc: standard output or input failed: No space left on device\n")


CLOSED = "usersvc: standard output or input failed: Bad file descriptor\n"


@pytest.mark.parametrize(
    ("line", "ended"),
    [
        ("users export >&-", (1, "", CLOSED)),
        ("config check >&-", (1, "", CLOSED)),
        ("users import --format ndjson - <&-", (1, "", CLOSED)),
        ("users show bob@example.com 2>&-", (1, "", "")),
        ("users list --limit 1 2>&- | wc -l", (0, "1\n", "")),
    ],
)
def test_closed_standard_streams_are_handled(usersvc: Commands, line: str, ended: tuple[int, str, str]) -> None:
    usersvc.register("alice@example.com", "carol@example.com")
    command = ["sh", "-c", f"{sys.executable} -m usersvc {line}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip(" "), found.stderr) == ended


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted({*COMMANDS, *(name.rpartition(" ")[0] for name in COMMANDS)}))
def test_every_command_has_help(usersvc: Commands, command: str) -> None:
    words = command.split()[1:]
    long, short = usersvc(*words, "--help"), usersvc(*words, "-h")
    assert (long.code, long.err, long) == (0, "", short)
    assert long.out.startswith(f"Usage: {command} ")
    assert "\\b" not in long.out
    # Examples stand on lines of their own.
    assert ("Example" in long.out) == bool(re.search(r"^ +Examples?:\n +\S", long.out, re.MULTILINE))
