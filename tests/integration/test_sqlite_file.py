"""How the file is made, upgraded, kept small, copied and checked."""

# ruff: noqa: ASYNC240  # no test waits for another while it looks at its files

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from usersvc.adapters import sqlite_file
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import Order, StorageUnavailable
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import PasswordHash, User

MEGABYTE = 1024 * 1024

# What each version has left behind, written out: the program's own words for it may change, these files will not.
SCHEMA_0 = "PRAGMA user_version = 0"
SCHEMA_1 = """
    CREATE TABLE users (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        mailbox TEXT NOT NULL UNIQUE,
        email TEXT NOT NULL,
        age INTEGER NOT NULL,
        password_hash TEXT NOT NULL,
        registered_at TEXT NOT NULL
    ) STRICT;
    INSERT INTO users VALUES (
        7, '01890a5d-ac96-774b-bcce-b302099a8057', 'alice@example.com', 'Alice@example.com', 30, '$hash',
        '2026-01-31T09:30:00.000000Z'
    );
    PRAGMA user_version = 1;
"""
ALICE = {
    "id": "01890a5d-ac96-774b-bcce-b302099a8057",
    "email": "Alice@example.com",
    "age": 30,
    "registered_at": "2026-01-31T09:30:00.000000Z",
}


def person(name: str) -> User:
    registration = User.register(email=f"{name}@example.com", password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=datetime.now(UTC))


async def open_and_close(path: Path) -> None:
    async with SqliteUsers(path):
        pass


def make(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.executescript(script)


def schema(path: Path) -> list[tuple[str, ...]]:
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


@pytest.mark.parametrize("script", [SCHEMA_0, SCHEMA_1], ids=["0", "1"])
async def test_every_earlier_schema_is_upgraded(tmp_path: Path, script: str) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    make(old, script)
    async with SqliteUsers(new), SqliteUsers(old) as users:
        await users.add(person("bob"))
    assert schema(old) == schema(new)
    assert sqlite_file.damage(old) == []


async def test_an_upgrade_keeps_who_is_there_and_mails_them_nothing(tmp_path: Path) -> None:
    make(tmp_path / "users.db", SCHEMA_1)
    async with SqliteUsers(tmp_path / "users.db") as users:
        with pytest.raises(EmailAlreadyRegistered):
            await users.add(person("alice"))
        assert await users.outbox.entries() == []
        await users.add(person("bob"))
        page = await users.page(limit=10, order=Order.ASC, after=6, mailbox=None)
    assert page.users[0] == ALICE
    assert [user["email"] for user in page.users[1:]] == ["bob@example.com"]


async def test_an_upgrade_that_fails_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "users.db", SCHEMA_1)
    before = schema(tmp_path / "users.db")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", (*sqlite_file.MIGRATIONS, "DROP TABLE users; CREATE TABLE ("))
    with pytest.raises(StorageUnavailable, match="syntax error"):
        await open_and_close(tmp_path / "users.db")
    assert schema(tmp_path / "users.db") == before


async def test_a_newer_file_keeps_every_byte(tmp_path: Path) -> None:
    make(tmp_path / "users.db", "CREATE TABLE users (something, newer); PRAGMA user_version = 99")
    before = (tmp_path / "users.db").read_bytes()
    with pytest.raises(StorageUnavailable, match="schema 99, made by a newer usersvc; this one knows up to 6"):
        await open_and_close(tmp_path / "users.db")
    assert (tmp_path / "users.db").read_bytes() == before
    with pytest.raises(StorageUnavailable, match="newer"):
        sqlite_file.damage(tmp_path / "users.db")


OPENER = """
import asyncio, sys
from pathlib import Path
from usersvc.adapters.sqlite import SqliteUsers

async def open_one(path):
    async with SqliteUsers(path) as users:
        await users.check()

for line in sys.stdin:
    asyncio.run(open_one(Path(line.rstrip())))
    print("opened", flush=True)
"""


def test_processes_that_start_at_once_make_or_upgrade_one_file(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    try:
        for attempt in range(10):
            path = tmp_path / f"{attempt}.db"
            if attempt % 2:
                make(path, SCHEMA_1)
            for process in processes:
                assert process.stdin
                process.stdin.write(f"{path}\n")
            for process in processes:
                assert process.stdin
                process.stdin.flush()
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "opened\n"
            assert sqlite_file.damage(path) == []
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0] * 4
    assert len(list(tmp_path.iterdir())) == 10


# --- damage ---------------------------------------------------------------------------------------------------------


async def spoilt(path: Path, *, first: int, last: int) -> None:
    """A file with some hundred pages of users, of which the bytes from one to another are overwritten."""
    async with SqliteUsers(path) as users:
        await fill(users, 1)
        await users.add(person("alice"))
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
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, first: int, last: int, what: str) -> None:
    path = tmp_path / "users.db"
    await spoilt(path, first=first, last=last)
    before = path.read_bytes()
    with pytest.raises(StorageUnavailable, match=f"cannot open .*({what})") as refusal:
        await open_and_close(path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before


async def test_a_large_damaged_file_opens_and_tells_when_it_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "users.db"
    await spoilt(path, first=4096 * 20, last=4096 * 90)
    monkeypatch.setattr(sqlite_file, "LOOKED_THROUGH", 0)
    async with SqliteUsers(path) as users:
        assert len((await users.page(limit=10, order=Order.ASC, after=None, mailbox=None)).users) == 1
        with pytest.raises(StorageUnavailable, match="malformed"):
            await users.outbox.entries()
    assert sqlite_file.damage(path)


async def test_damage_is_met_only_by_those_who_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.db"
    async with SqliteUsers(path) as users:
        await users.add_all([person(f"user{number}") for number in range(1000)])
    data = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as file:
        [[root]] = file.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'users'")
    # Behind the head of an inner page are the places of its cells, each of which begins with a page further down.
    place = int.from_bytes(data[4096 * (root - 1) + 22 : 4096 * (root - 1) + 24])
    leaf = int.from_bytes(data[4096 * (root - 1) + place : 4096 * (root - 1) + place + 4])
    data[4096 * (leaf - 1) : 4096 * leaf] = b"\xa5" * 4096
    path.write_bytes(data)

    monkeypatch.setattr(sqlite_file, "LOOKED_THROUGH", 0)
    async with SqliteUsers(path) as users:
        everybody = await asyncio.gather(
            *(users.page(limit=1, order=Order.ASC, after=after, mailbox=None) for after in range(1000)),
            return_exceptions=True,
        )
    read = [number for number, page in enumerate(everybody) if not isinstance(page, BaseException)]
    assert read[:5] == [0, 1, 2, 3, 4]
    assert read[-5:] == [995, 996, 997, 998, 999]
    # A page of the file holds some thirty users.
    assert 0 < 1000 - len(read) < 60
    assert {type(page) for page in everybody if isinstance(page, BaseException)} == {StorageUnavailable}


async def test_a_file_that_is_well_has_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    make(path, SCHEMA_1)
    assert sqlite_file.damage(path) == ["its schema is 1; the next start brings it to 6"]
    async with SqliteUsers(path):
        assert sqlite_file.damage(path) == []
    with pytest.raises(StorageUnavailable, match="cannot read"):
        sqlite_file.damage(tmp_path / "missing.db")
    assert not (tmp_path / "missing.db").exists()


# --- the write-ahead log --------------------------------------------------------------------------------------------


async def test_the_wal_stays_small_and_goes_at_the_end(tmp_path: Path) -> None:
    wal = tmp_path / "users.db-wal"
    async with SqliteUsers(tmp_path / "users.db") as users:
        sizes = []
        for _ in range(15):
            await fill(users, 1)
            sizes.append(wal.stat().st_size)
    assert max(sizes) < 8 * MEGABYTE
    assert [file.name for file in tmp_path.iterdir()] == ["users.db"]


async def test_a_wal_grown_under_a_long_read_is_cut_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "WAL_LIMIT", MEGABYTE)
    wal = tmp_path / "users.db-wal"
    async with SqliteUsers(tmp_path / "users.db") as users:
        with closing(sqlite3.connect(tmp_path / "users.db", isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM users").fetchone()
            await fill(users, 12)
            assert wal.stat().st_size > 12 * MEGABYTE
        for name in ("alice", "bob"):
            await users.add(person(name))
        assert wal.stat().st_size <= MEGABYTE


# --- copies ---------------------------------------------------------------------------------------------------------


async def test_a_copy_is_of_one_moment_and_one_file(tmp_path: Path) -> None:
    path, copy = tmp_path / "users.db", tmp_path / "copy.db"
    async with SqliteUsers(path) as users:
        path.chmod(0o600)
        await fill(users, 4)

        async def register() -> None:
            for n in range(200):
                await users.add(person(f"user{n}"))

        registering = asyncio.create_task(register())
        await asyncio.to_thread(sqlite_file.backup, path, copy)
        await registering

    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.db", "users.db"]
    assert copy.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(copy)) as file:
        [users_in_copy] = file.execute("SELECT count(*) FROM users").fetchone()
        assert file.execute("SELECT count(*) FROM outbox WHERE email != ''").fetchone() == (users_in_copy,)
    assert sqlite_file.damage(copy) == []


async def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path, folder = tmp_path / "users.db", tmp_path / "copies"
    await spoilt(path, first=0, last=4096)
    folder.mkdir()
    with pytest.raises(StorageUnavailable, match="cannot copy"):
        sqlite_file.backup(path, folder / "copy.db")
    assert list(folder.iterdir()) == []
    shutil.rmtree(folder)
    with pytest.raises(StorageUnavailable, match="cannot copy"):
        sqlite_file.backup(path, folder / "copy.db")
