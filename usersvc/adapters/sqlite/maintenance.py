"""Backup and check of an SQLite file, which may be in use."""

import sqlite3
from contextlib import closing
from pathlib import Path

from usersvc.adapters.sqlite.database import BUSY_TIMEOUT, file_uri, storage_errors
from usersvc.adapters.sqlite.schema import integrity_problems, schema_problems


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
        closing(sqlite3.connect(file_uri(source, "rw"), uri=True, timeout=BUSY_TIMEOUT)) as original,
        closing(sqlite3.connect(file_uri(target, "rw"), uri=True)) as copy,
    ):
        original.backup(copy)
        # One file, without a -wal and a -shm beside it.
        copy.execute("PRAGMA journal_mode = DELETE")


def damage(path: Path) -> list[str]:
    """The problems of a database; empty if there are none.

    Raises:
        StorageUnavailable: it cannot be read at all, or its schema is newer or unknown.
    """
    with (
        storage_errors(f"cannot read {path}"),
        closing(sqlite3.connect(file_uri(path, "rw"), uri=True, timeout=BUSY_TIMEOUT)) as connection,
    ):
        return integrity_problems(connection, "integrity_check") + schema_problems(connection)
