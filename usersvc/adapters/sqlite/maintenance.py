"""Backup and check of an SQLite file, which may be in use."""

from contextlib import closing
from pathlib import Path

from usersvc.adapters.sqlite.database import BUSY_TIMEOUT, connect, storage_errors
from usersvc.adapters.sqlite.schema import schema_problems


def backup(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of a database, while other processes may write to it.

    Args:
        source: the database.
        target: an empty file.

    Raises:
        StorageUnavailable: one of the two cannot be read or written.
    """
    with (
        storage_errors(f"cannot copy {source}"),
        closing(connect(source, BUSY_TIMEOUT)) as original,
        closing(connect(target, BUSY_TIMEOUT)) as copy,
    ):
        original.backup(copy)
        # One file, without a -wal and a -shm beside it.
        copy.execute("PRAGMA journal_mode = DELETE")


def damage(path: Path) -> list[str]:
    """The problems of a database; empty if there are none.

    Raises:
        StorageUnavailable: it cannot be read at all, or its schema is newer or unknown.
    """
    with storage_errors(f"cannot read {path}"), closing(connect(path, BUSY_TIMEOUT)) as connection:
        found = connection.execute("PRAGMA integrity_check").fetchall()
        return [problem for [problem] in found if problem != "ok"] + schema_problems(connection)
