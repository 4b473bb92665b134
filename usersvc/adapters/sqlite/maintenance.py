"""Backup and check of an SQLite file, which may be in use."""

import sqlite3
from contextlib import closing
from pathlib import Path

from usersvc.adapters.sqlite.database import BUSY_TIMEOUT, file_uri, storage_errors
from usersvc.adapters.sqlite.schema import schema_problems


def backup(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of a database, which may be in use, to an empty file.

    Raises:
        StorageUnavailable: one of the two cannot be read or written.
    """
    with (
        storage_errors(f"cannot copy {source}"),
        closing(_connect(source)) as original,
        closing(_connect(target)) as copy,
    ):
        original.backup(copy)
        # One file, without a -wal and a -shm beside it.
        copy.execute("PRAGMA journal_mode = DELETE")


def damage(path: Path) -> list[str]:
    """The problems of a database; empty if there are none.

    Raises:
        StorageUnavailable: it cannot be read at all, or its schema is newer or unknown.
    """
    with storage_errors(f"cannot read {path}"), closing(_connect(path)) as connection:
        problems = []
        try:
            problems += [found for [found] in connection.execute("PRAGMA integrity_check") if found != "ok"]
            problems += schema_problems(connection)
        except sqlite3.DatabaseError as error:
            # Some damage ends the check.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            problems.append(str(error))
        return problems


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(file_uri(path), uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
