"""``SqliteUsers`` with a failing disk, a moved or locked file, and callers that are cancelled."""

# ruff: noqa: ASYNC240  # no test waits for another while it moves its files

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests import fakes
from usersvc.adapters.sqlite import SqliteUsers, maintenance
from usersvc.adapters.sqlite import database as sqlite_file
from usersvc.application.errors import StorageUnavailable
from usersvc.application.read_models import Order
from usersvc.domain.user import User


async def names(users: SqliteUsers) -> list[str]:
    page = await users.page(limit=200, order=Order.ASC, after=None, mailbox=None)
    return [user["email"].partition("@")[0] for user in page.users]


def person(name: str) -> User:
    return fakes.person(f"{name}@example.com")


async def open_and_close(path: Path) -> None:
    async with SqliteUsers(path):
        pass


async def assert_unavailable(users: SqliteUsers, name: str) -> None:
    for attempt in (users.check(), users.add(person(name)), users.remove(uuid4())):
        with pytest.raises(StorageUnavailable):
            await attempt


@pytest.fixture
def path(tmp_path: Path) -> Path:
    # In a separate directory, as on a volume that can be unmounted.
    folder = tmp_path / "volume"
    folder.mkdir()
    return folder / "users.db"


@pytest.fixture
async def users(path: Path) -> AsyncIterator[SqliteUsers]:
    async with SqliteUsers(path) as users:
        yield users


# --- storage that is moved or replaced --------------------------------------------------------------------------------


async def test_a_moved_directory_is_unavailable_until_it_is_back(path: Path, users: SqliteUsers) -> None:
    await users.add(person("alice"))
    elsewhere = path.parent.with_name("elsewhere")
    path.parent.rename(elsewhere)
    await assert_unavailable(users, "bob")

    path.parent.mkdir()
    await assert_unavailable(users, "bob")
    assert list(path.parent.iterdir()) == []

    path.parent.rmdir()
    elsewhere.rename(path.parent)
    await users.add(person("carol"))
    assert await names(users) == ["alice", "carol"]


async def test_a_replaced_file_is_used_after_a_restart(path: Path, tmp_path: Path) -> None:
    async with SqliteUsers(path) as users:
        await users.add(person("alice"))
        saved = tmp_path / "saved.db"
        saved.touch()
        maintenance.backup(path, saved)
        await users.add(person("bob"))
        shutil.rmtree(path.parent)
        await assert_unavailable(users, "carol")

        path.parent.mkdir()
        saved.rename(path)
        before = path.read_bytes()
        await assert_unavailable(users, "carol")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]

    async with SqliteUsers(path) as users:
        assert await names(users) == ["alice"]
        await users.add(person("dave"))
        assert await names(users) == ["alice", "dave"]
    assert maintenance.damage(path) == []


async def test_another_database_beside_the_old_wal_is_not_touched(
    path: Path, users: SqliteUsers, tmp_path: Path
) -> None:
    await users.add(person("alice"))
    saved = tmp_path / "saved.db"
    saved.touch()
    maintenance.backup(path, saved)
    await users.add(person("bob"))
    before = saved.read_bytes()
    path.rename(tmp_path / "old.db")
    shutil.copy(saved, path)

    with pytest.raises(StorageUnavailable, match="moved or replaced"):
        await users.check()
    await assert_unavailable(users, "carol")
    assert path.read_bytes() == before

    (tmp_path / "old.db").rename(path)
    assert await names(users) == ["alice", "bob"]


async def test_a_write_to_a_file_moved_meanwhile_is_not_acknowledged(path: Path, users: SqliteUsers) -> None:
    def go(connection: sqlite3.Connection) -> None:
        path.rename(path.with_name("elsewhere"))

    with pytest.raises(StorageUnavailable, match="moved or replaced"):
        await users._file.write(go)


async def test_a_wal_without_its_database_is_kept(path: Path, users: SqliteUsers, tmp_path: Path) -> None:
    await users.add(person("alice"))
    # As after a crash, with the file itself put elsewhere.
    folder = tmp_path / "crashed"
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", folder / f"users.db{suffix}")
    database, elsewhere = folder / "users.db", folder / "elsewhere"
    database.rename(elsewhere)

    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="-wal"):
            await open_and_close(database)
        # The second time there is an empty file.
        database.touch()

    elsewhere.rename(database)
    async with SqliteUsers(database) as again:
        assert await names(again) == ["alice"]


# --- disks and files that cannot be written to ----------------------------------------------------------------------


async def test_a_full_disk_refuses_writes_and_loses_nothing(users: SqliteUsers) -> None:
    await users.add(person("alice"))
    # SQLite's own idea of a full disk: the file may not grow.
    [[pages]] = await users._file.change("PRAGMA page_count")
    await users._file.change(f"PRAGMA max_page_count = {pages}")
    stored = 0
    try:
        while stored < 1000:
            await users.add(person(f"user{stored}"))
            stored += 1
    except StorageUnavailable as error:
        assert "full" in str(error)
    assert stored < 1000
    await users._file.change("PRAGMA max_page_count = 1000000")
    await users.add(person("bob"))
    assert await names(users) == ["alice", *(f"user{n}" for n in range(stored)), "bob"]
    assert len(await users.outbox.entries()) == stored + 2


async def test_a_read_only_file_is_refused_until_it_is_writable(path: Path) -> None:
    async with SqliteUsers(path) as users:
        await users.add(person("alice"))
    path.chmod(0o444)
    if os.access(path, os.W_OK):
        pytest.skip("this user may write to every file")
    with pytest.raises(StorageUnavailable, match="cannot be written to"):
        await open_and_close(path)
    # No read-only file was left beside it.
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o644)
    async with SqliteUsers(path) as users:
        await users.add(person("bob"))


# --- waiting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT", 0.05)
    monkeypatch.setattr(sqlite_file, "CALL_TIMEOUT", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
async def test_all_calls_on_a_locked_database_fail_in_time(path: Path, lock: str) -> None:
    async with SqliteUsers(path) as users:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(f"BEGIN {lock}")
            async with asyncio.timeout(10):
                outcomes = await asyncio.gather(
                    *(users.add(person(f"user{n}")) for n in range(50)), return_exceptions=True
                )
            assert {type(outcome) for outcome in outcomes} == {StorageUnavailable}
            with pytest.raises(StorageUnavailable, match="locked"):
                await users.check()
            assert await names(users) == []
        await asyncio.gather(*(users.add(person(f"user{n}")) for n in range(5)))
        assert len(await names(users)) == 5


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_disk_blocks_no_write_forever(path: Path) -> None:
    async with SqliteUsers(path) as users:
        woken = threading.Event()

        def hang(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE sqlite_sequence SET seq = seq")
            woken.wait()

        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(
                users._file.write(hang),
                *(users.add(person(f"user{n}")) for n in range(50)),
                return_exceptions=True,
            )
            assert {str(outcome) for outcome in outcomes} == {"cannot write: timed out"}
            # Writing still hangs, and reading does not.
            with pytest.raises(StorageUnavailable, match="timed out"):
                await users.check()
            assert await names(users) == []

        woken.set()
        await users.add(person("alice"))
        assert await names(users) == ["alice"]


@pytest.mark.usefixtures("impatient")
async def test_a_frozen_read_blocks_no_caller_forever(path: Path) -> None:
    async with SqliteUsers(path) as users:
        woken = threading.Event()
        await users._file._reads._connection.create_function("hang", 0, woken.wait)

        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(
                users._file.read("SELECT hang()"), *(names(users) for _ in range(50)), return_exceptions=True
            )
        assert {str(outcome) for outcome in outcomes} == {"cannot read: timed out"}
        await users.add(person("alice"))
        woken.set()
        assert await names(users) == ["alice"]


async def test_a_cancelled_caller_leaves_no_open_transaction(users: SqliteUsers) -> None:
    for steps in range(40):
        registration = asyncio.create_task(users.add(person(f"user{steps}")))
        for _ in range(steps):
            await asyncio.sleep(0)
        registration.cancel()
        follower = users.add(person(f"follower{steps}"))
        await asyncio.gather(registration, return_exceptions=True)
        await follower

    stored = await names(users)
    assert sum(name.startswith("follower") for name in stored) == 40
    assert [entry.event.email.partition("@")[0] for entry in await users.outbox.entries()] == stored


async def test_a_write_of_a_cancelled_caller_is_rolled_back(users: SqliteUsers) -> None:
    begun, woken = threading.Event(), threading.Event()

    def insert(connection: sqlite3.Connection) -> None:
        begun.set()
        woken.wait()
        connection.execute("INSERT INTO outbox (user_id, email, occurred_at) VALUES ('1', '', '')")

    writing = asyncio.create_task(users._file.write(insert))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    woken.set()
    await users.add(person("alice"))
    assert [entry.event.email for entry in await users.outbox.entries()] == ["alice@example.com"]


async def test_failed_work_is_rolled_back(users: SqliteUsers) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO outbox (user_id, email, occurred_at) VALUES ('1', '', '')")
        raise KeyError

    with pytest.raises(KeyError):
        await users._file.write(fail)
    assert await users.outbox.entries() == []
    await users.add(person("alice"))


@pytest.mark.parametrize("failure", [sqlite3.OperationalError, asyncio.CancelledError])
async def test_a_failed_or_cancelled_opening_closes_what_it_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise failure

    monkeypatch.setattr(sqlite_file, "_prepare_reader", fail)
    with pytest.raises((StorageUnavailable, asyncio.CancelledError)):
        await open_and_close(path)
    assert [file.name for file in path.parent.iterdir()] == ["users.db"], "an open connection keeps the -wal"


@pytest.mark.usefixtures("impatient")
async def test_closing_waits_a_limited_time_for_a_hanging_statement(path: Path) -> None:
    woken = threading.Event()
    async with asyncio.timeout(10):
        async with SqliteUsers(path) as users:
            with pytest.raises(StorageUnavailable, match="timed out"):
                await users._file.write(lambda _: woken.wait())
        await assert_unavailable(users, "alice")
        with pytest.raises(StorageUnavailable, match="closed"):
            await names(users)
    writer = users._file._writer._thread
    woken.set()
    await asyncio.to_thread(writer.join)
    assert [file.name for file in path.parent.iterdir()] == ["users.db"], "the connection was not closed afterwards"
