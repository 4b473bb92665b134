import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import NOW, person
from tests.integration.test_faults import open_and_close
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.adapters.sqlite import database as sqlite_file
from usersvc.adapters.sqlite import outbox as sqlite
from usersvc.adapters.sqlite import schema as sqlite_schema
from usersvc.application.errors import StorageUnavailable
from usersvc.domain.mail_limits import MAILBOX
from usersvc.domain.user import User


async def test_acknowledged_users_are_synced_to_a_strict_table_in_wal(tmp_path: Path) -> None:
    async with SqliteUsers(tmp_path / "users.db") as users:
        [[synchronous]] = await users._file.change("PRAGMA synchronous")
        [[journal]] = await users._file.change("PRAGMA journal_mode")
    assert (synchronous, journal) == (2, "wal")
    with sqlite3.connect(tmp_path / "users.db") as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(sqlite_schema.MIGRATIONS),)
        assert [row[5] for row in file.execute("PRAGMA table_list") if row[1] == "users"] == [1]
    file.close()


async def test_a_missing_directory_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="cannot open the database: No such file or directory"):
        await open_and_close(tmp_path / "missing" / "users.db")


async def test_a_lost_table_is_unavailable(tmp_path: Path) -> None:
    async with SqliteUsers(tmp_path / "users.db") as users:
        with sqlite3.connect(tmp_path / "users.db") as file:
            file.execute("DROP TABLE users")
        file.close()
        with pytest.raises(StorageUnavailable):
            await users.check()
        with pytest.raises(StorageUnavailable):
            await users.add(person("alice@example.com"))


async def test_a_new_file_locked_for_too_long_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.db"
    monkeypatch.setattr(sqlite_file, "OPENING_TIMEOUT", 0.1)
    file = sqlite3.connect(path, isolation_level=None)
    file.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageUnavailable, match="locked"):
        await open_and_close(path)
    file.close()


async def test_a_duplicate_id_is_not_reported_as_a_taken_mailbox(tmp_path: Path) -> None:
    alice, bob = person("alice@example.com"), person("bob@example.com")
    async with SqliteUsers(tmp_path / "users.db") as users:
        await users.add(alice)
        with pytest.raises(StorageUnavailable, match=r"users\.id"):
            await users.add(User(alice.id, bob.email, bob.age, bob.password_hash, bob.registered_at))


async def test_check_does_not_undo_a_migration(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with SqliteUsers(path) as users:
        with closing(sqlite3.connect(path)) as file:
            file.execute("PRAGMA user_version = 99")
        await users.check()
        with closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA user_version").fetchone() == (99,)


async def test_no_write_is_acknowledged_after_the_wal_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with SqliteUsers(path) as users:
        await users.add(person("alice@example.com"))
        (tmp_path / "users.db-wal").unlink()
        with pytest.raises(StorageUnavailable, match="-wal"):
            await users.add(person("bob@example.com"))
        with pytest.raises(StorageUnavailable, match="-wal"):
            await users.check()


def modes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


async def test_only_the_owner_can_access_the_file(tmp_path: Path) -> None:
    async with SqliteUsers(tmp_path / "users.db") as users:
        await users.add(person("alice@example.com"))
        found = modes(tmp_path)
    assert found == dict.fromkeys(("users.db", "users.db-wal", "users.db-shm"), 0o600)


async def test_a_lease_uses_indexes_without_sorting(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with SqliteUsers(path):
        with closing(sqlite3.connect(path)) as connection:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sqlite._DUE}", ("", "", 8))]
    assert [step for step in plan if "outbox" in step] == [
        "SEARCH outbox USING INDEX outbox_due_at (due_at<?)",
        "SEARCH outbox USING INDEX outbox_unlimited (due_at>?)",
    ]
    assert not [step for step in plan if "B-TREE" in step]


async def test_expired_mail_limits_are_deleted(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    async with SqliteUsers(path) as users:
        for number in range(10):
            await users.add(person(f"user{number}@d{number}.example.com"))
        # A gap of the limit on a mailbox later, nothing of them has an effect.
        await users.add(person("late@example.com", at=NOW + MAILBOX.gap))
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM mail_limits").fetchone() == (2,)
