"""The schema of the SQLite file: its versions, migrations and checks."""

import sqlite3
from contextlib import closing

from usersvc.application.errors import StorageUnavailable

APPLICATION_ID = 0x75737663
"""Marks an SQLite file as one of this service ("usvc"); pre-release versions, whose schemas differ, did not set it."""

MIGRATIONS = (
    # AUTOINCREMENT: a position is never used again, even after its user is removed.
    # outbox.due_at: null for a dead-lettered entry, the end of the lease for a leased one.
    # outbox_unlimited: entries that no mail limit delays, see SqliteOutbox.lease.
    # mail_limits: see usersvc.domain.mail_limits; a row has no effect after `until`.
    """
    CREATE TABLE users (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        mailbox TEXT NOT NULL UNIQUE,
        email TEXT NOT NULL,
        age INTEGER NOT NULL,
        password_hash TEXT NOT NULL,
        registered_at TEXT NOT NULL
    ) STRICT;
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        user_id TEXT NOT NULL,
        email TEXT NOT NULL,
        occurred_at TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due_at TEXT,
        reason TEXT,
        lease TEXT,
        request_id TEXT,
        trace_id TEXT,
        span_id TEXT
    ) STRICT;
    CREATE INDEX outbox_due_at ON outbox (due_at) WHERE due_at IS NOT NULL;
    CREATE INDEX outbox_unlimited ON outbox (due_at) WHERE attempts > 0 OR reason IS NULL;
    CREATE TABLE mail_limits (
        digest TEXT PRIMARY KEY,
        since TEXT NOT NULL,
        until TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX mail_limits_until ON mail_limits (until);
    CREATE TABLE idempotency_keys (
        digest TEXT PRIMARY KEY,
        user_id TEXT NOT NULL,
        used_at TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_keys_used_at ON idempotency_keys (used_at);
    """,
)
"""The statements that lead from each schema version (``PRAGMA user_version``) to the next; see ``docs/upgrade.md``."""


def schema_version(connection: sqlite3.Connection) -> int:
    """The schema version of the file; 0 if the file is empty.

    Raises:
        StorageUnavailable: the schema is of a newer version, of a pre-release version, or of another program.
    """
    # One statement reads one snapshot: another process may be creating the tables.
    version: int
    version, application_id, is_empty = connection.execute(
        """
        SELECT user_version, application_id, NOT EXISTS (SELECT 1 FROM sqlite_schema)
        FROM pragma_user_version, pragma_application_id
        """
    ).fetchone()
    if application_id != APPLICATION_ID and not (is_empty and version == application_id == 0):
        raise StorageUnavailable(
            "the file is of a pre-release usersvc or of another program; export the users with the version that made "
            "it, and import them into a new file: docs/moving.md"
        )
    if version > len(MIGRATIONS):
        raise StorageUnavailable(
            f"the database has schema {version}, made by a newer usersvc; this one knows up to {len(MIGRATIONS)}"
        )
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Run the missing migrations, if any, in one transaction."""
    if schema_version(connection) == len(MIGRATIONS):
        return
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        # The version is read again: another process may have migrated the file meanwhile.
        for migration in MIGRATIONS[schema_version(connection) :]:
            for statement in filter(str.strip, migration.split(";")):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")


def schema_problems(connection: sqlite3.Connection) -> list[str]:
    """How the schema differs from the current one: its version, or missing and changed tables and indexes."""
    version = schema_version(connection)
    if version < len(MIGRATIONS):
        return [f"its schema is {version}; the next start brings it to {len(MIGRATIONS)}"]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as expected:
        migrate(expected)
        missing = _objects(expected) - _objects(connection)
    return [f"{kind} {name} is missing or changed" for kind, name, _ in missing]


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str, str]]:
    return set(connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
