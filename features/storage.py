"""Direct access to the storage of the service."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import httpx

from tests.e2e.server import SERVE
from tests.postgres import query

MEMORY_SERVE = (SERVE[0], "-m", "features.memory_service")
INSPECT_PATH = "/-/stored"
"""Where ``features.memory_service`` shows its store."""


@dataclass(frozen=True)
class OutboxRow:
    """A mail that is not delivered."""

    email: str
    is_leased: bool
    due_at: datetime | None
    """None: dead-lettered."""


class Storage(Protocol):
    """The storage of one service."""

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a service that uses it."""

    def connect(self, service_url: str) -> None:
        """Called when the service runs."""

    def outbox(self) -> list[OutboxRow]:
        """The outbox."""

    def hashes(self) -> dict[str, str]:
        """The hashes of passwords by the id of the user."""

    def everything(self) -> bytes:
        """Everything, as it is stored."""

    def delete_mails(self) -> None:
        """Delete the mails that are not leased."""

    def delete_all(self) -> None:
        """Delete everything."""


class SqliteStorage:
    """A file in a folder of its own."""

    NAME = "users.db"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def settings(self) -> dict[str, str]:
        return {"USERSVC_DATABASE_URL": f"sqlite:///{self.NAME}"}

    def connect(self, service_url: str) -> None:
        """The file is there."""

    def outbox(self) -> list[OutboxRow]:
        return [
            OutboxRow(email, lease is not None, None if due_at is None else datetime.fromisoformat(due_at))
            for email, lease, due_at in self._query("SELECT email, lease, due_at FROM outbox")
        ]

    def hashes(self) -> dict[str, str]:
        return dict(self._query("SELECT id, password_hash FROM users"))

    def everything(self) -> bytes:
        return b"".join(path.read_bytes() for path in self._folder.iterdir())

    def delete_mails(self) -> None:
        self._query("DELETE FROM outbox WHERE lease IS NULL")

    def delete_all(self) -> None:
        tables = self._query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (table,) in tables:
            self._query(f'DELETE FROM "{table}"')

    def _query(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self._folder / self.NAME, isolation_level=None)) as connection:
            return connection.execute(statement).fetchall()


class PostgresStorage:
    """A database of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def settings(self) -> dict[str, str]:
        return {"USERSVC_DATABASE_URL": self._url}

    def connect(self, service_url: str) -> None:
        """The database is there."""

    def outbox(self) -> list[OutboxRow]:
        rows = query(self._url, "SELECT (email, lease IS NOT NULL, due_at) FROM outbox")
        return [OutboxRow(*row) for row in rows]

    def hashes(self) -> dict[str, str]:
        rows = query(self._url, "SELECT (id::text, password_hash) FROM users")
        return dict(rows)

    def everything(self) -> bytes:
        tables = ("users", "outbox", "idempotency_keys", "mail_limits")
        rows = [query(self._url, f"SELECT {table}::text FROM {table}") for table in tables]
        return repr(rows).encode()

    def delete_mails(self) -> None:
        query(self._url, "DELETE FROM outbox WHERE lease IS NULL")

    def delete_all(self) -> None:
        # Keys go with their users.
        query(self._url, "WITH mails AS (DELETE FROM outbox), limits AS (DELETE FROM mail_limits) DELETE FROM users")


class MemoryStorage:
    """The memory of the service, through ``features.memory_service``."""

    @property
    def settings(self) -> dict[str, str]:
        # The service runs in a folder of its own, and is imported from here.
        return {"USERSVC_DATABASE_URL": "memory://", "PYTHONPATH": str(Path(__file__).parents[1])}

    def connect(self, service_url: str) -> None:
        # Reading the certificates of the system takes longer than a scenario.
        self._client = httpx.Client(base_url=service_url, trust_env=False, verify=False)

    def close(self) -> None:
        self._client.close()

    def outbox(self) -> list[OutboxRow]:
        return [
            OutboxRow(entry["email"], entry["is_leased"], entry["due_at"] and datetime.fromisoformat(entry["due_at"]))
            for entry in self._inspect()["waiting"]
        ]

    def hashes(self) -> dict[str, str]:
        hashes: dict[str, str] = self._inspect()["hashes"]
        return hashes

    def everything(self) -> bytes:
        return self._client.get(INSPECT_PATH).raise_for_status().content

    def delete_mails(self) -> None:
        self._client.delete(INSPECT_PATH, params={"what": "mails"}).raise_for_status()

    def delete_all(self) -> None:
        self._client.delete(INSPECT_PATH, params={"what": "all"}).raise_for_status()

    def _inspect(self) -> Any:
        return self._client.get(INSPECT_PATH).raise_for_status().json()
