"""How the file is created, upgraded, kept small, copied and checked."""

# ruff: noqa: ASYNC240  # the tests have no concurrent work that file access would delay

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import person
from tests.integration.test_faults import open_and_close
from usersvc.adapters.sqlite import SqliteUsers, maintenance
from usersvc.adapters.sqlite import database as sqlite_file
from usersvc.adapters.sqlite import schema as sqlite_schema
from usersvc.application.errors import StorageUnavailable
from usersvc.application.read_models import Order
from usersvc.domain.errors import EmailAlreadyRegistered

MEGABYTE = 1024 * 1024


def make(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.executescript(script)


def schema(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as file:
        version = file.execute("PRAGMA user_version").fetchone()
        return [version, *file.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()]


async def fill(users: SqliteUsers, megabytes: int) -> None:
    for _ in range(megabytes):
        await users._file.change(
            """
            WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < 1024)
            INSERT INTO outbox (user_id, email, occurred_at, reason) SELECT n, '', '', printf('%.1000c', 'x') FROM counter
            """  # noqa: E501
        )


# --- schema versions ------------------------------------------------------------------------------------------------


ADDS_A_COLUMN = "ALTER TABLE users ADD COLUMN colour TEXT; CREATE INDEX users_colour ON users (colour)"


async def test_each_missing_migration_runs_and_keeps_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    async with SqliteUsers(old) as users:
        await users.add(person("alice@example.com"))
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, ADDS_A_COLUMN))
    assert maintenance.damage(old) == ["its schema is 1; the next start brings it to 2"]
    async with SqliteUsers(new), SqliteUsers(old) as users:
        with pytest.raises(EmailAlreadyRegistered):
            await users.add(person("alice@example.com"))
        await users.add(person("bob@example.com"))
    await open_and_close(old)
    assert schema(old) == schema(new)
    assert schema(old)[0] == (2,)
    assert maintenance.damage(old) == []


async def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await open_and_close(tmp_path / "users.db")
    before = schema(tmp_path / "users.db")
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, "DROP TABLE users; CREATE TABLE ("))
    with pytest.raises(StorageUnavailable, match="syntax error"):
        await open_and_close(tmp_path / "users.db")
    assert schema(tmp_path / "users.db") == before


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}; PRAGMA user_version = 99",
         "schema 99, made by a newer usersvc; this one knows up to 1"),
        ("PRAGMA user_version = 1", "pre-release usersvc or of another program; export the users"),
        ("PRAGMA user_version = 5", "pre-release usersvc or of another program; export the users"),
        ("", "pre-release usersvc or of another program; export the users"),
    ],
    ids=["newer", "pre-release 1", "pre-release 5", "another program"],
)  # fmt: skip
async def test_a_file_of_another_schema_is_refused_and_unchanged(tmp_path: Path, script: str, reason: str) -> None:
    make(tmp_path / "users.db", f"CREATE TABLE users (something, other); {script}")
    before = (tmp_path / "users.db").read_bytes()
    with pytest.raises(StorageUnavailable, match=reason) as refusal:
        await open_and_close(tmp_path / "users.db")
    assert "\n" not in str(refusal.value)
    assert (tmp_path / "users.db").read_bytes() == before
    with pytest.raises(StorageUnavailable, match=reason):
        maintenance.damage(tmp_path / "users.db")


OPENER = """
import asyncio, sys, time
from pathlib import Path
from usersvc.adapters.sqlite import SqliteUsers, schema

schema.MIGRATIONS = tuple(sys.argv[2:])

async def open_one(path):
    async with SqliteUsers(path) as users:
        await users.check()

print("ready", flush=True)
sys.stdin.readline()
for path in sorted(Path(sys.argv[1]).glob("*.directory")):
    asyncio.run(open_one(path / "users.db"))
"""


@pytest.mark.parametrize("added", [0, 1])
def test_concurrent_processes_create_or_migrate_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, added: int
) -> None:
    paths = [tmp_path / f"{attempt}.directory" / "users.db" for attempt in range(5)]
    for path in paths:
        path.parent.mkdir()
        if added:
            asyncio.run(open_and_close(path))
    monkeypatch.setattr(sqlite_schema, "MIGRATIONS", (*sqlite_schema.MIGRATIONS, ADDS_A_COLUMN)[: 1 + added])
    command = [sys.executable, "-c", OPENER, str(tmp_path), *sqlite_schema.MIGRATIONS]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    assert [maintenance.damage(path) for path in paths] == [[]] * 5
    assert {file.name for path in paths for file in path.parent.iterdir()} == {"users.db"}


# --- damage ---------------------------------------------------------------------------------------------------------


async def damaged(path: Path, *, first: int, last: int) -> None:
    """A file with some hundred pages of users, of which the bytes from one to another are overwritten."""
    async with SqliteUsers(path) as users:
        await fill(users, 1)
        await users.add(person("alice@example.com"))
    data = bytearray(path.read_bytes())
    data[first:last] = b"\xa5" * (last - first)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("first", "last", "what"),
    [
        (0, 16, "file is not a database"),
        (16, 100, "file is not a database"),
        (100, 4096, "malformed"),
        (4096 * 20, 4096 * 90, "damaged|malformed"),
    ],
)
async def test_a_damaged_file_is_refused_and_unchanged(tmp_path: Path, first: int, last: int, what: str) -> None:
    path = tmp_path / "users.db"
    await damaged(path, first=first, last=last)
    before = path.read_bytes()
    with pytest.raises(StorageUnavailable, match=f"cannot open .*({what})") as refusal:
        await open_and_close(path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before


async def test_a_large_damaged_file_opens_and_reading_the_damage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "users.db"
    await damaged(path, first=4096 * 20, last=4096 * 90)
    monkeypatch.setattr(sqlite_file, "QUICK_CHECK_LIMIT", 0)
    async with SqliteUsers(path) as users:
        assert len((await users.page(limit=10, order=Order.ASC, after=None, mailbox=None)).users) == 1
        with pytest.raises(StorageUnavailable, match="malformed"):
            await users.outbox.entries()
    assert maintenance.damage(path) == ["database disk image is malformed"]


async def test_a_missing_file_cannot_be_checked_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="cannot read"):
        maintenance.damage(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


# --- the write-ahead log --------------------------------------------------------------------------------------------


async def test_a_wal_that_grew_during_a_long_read_is_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "WAL_LIMIT", MEGABYTE)
    wal = tmp_path / "users.db-wal"
    async with SqliteUsers(tmp_path / "users.db") as users:
        with closing(sqlite3.connect(tmp_path / "users.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM users").fetchone()
            await fill(users, 12)
            assert wal.stat().st_size > 12 * MEGABYTE
        for name in ("alice", "bob"):
            await users.add(person(f"{name}@example.com"))
        assert wal.stat().st_size <= MEGABYTE


async def test_a_backup_is_a_consistent_snapshot_in_one_file(tmp_path: Path) -> None:
    path, copy = tmp_path / "users.db", tmp_path / "copy.db"
    async with SqliteUsers(path) as users:
        path.chmod(0o600)
        await fill(users, 4)

        async def register() -> None:
            for n in range(200):
                await users.add(person(f"user{n}@example.com"))

        registering = asyncio.create_task(register())
        copy.touch()
        await asyncio.to_thread(maintenance.backup, path, copy)
        await registering

    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "users.db"]
    with closing(sqlite3.connect(copy)) as file:
        [users_in_copy] = file.execute("SELECT count(*) FROM users").fetchone()
        assert file.execute("SELECT count(*) FROM outbox WHERE email != ''").fetchone() == (users_in_copy,)
    assert maintenance.damage(copy) == []
