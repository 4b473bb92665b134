"""Databases of the tests on a real PostgreSQL server."""

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from tests.tcp_proxy import Connect
from usersvc.adapters.postgres import PostgresUsers

T = TypeVar("T")

SERVER_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql:///postgres")
"""A server on which databases may be created: by default that of this host, as the user that runs the tests."""


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own, also while another one is running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _connected(url: str, use: Callable[[asyncpg.Connection], Coroutine[Any, Any, T]]) -> T:
    async def connect() -> T:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await use(connection)
        finally:
            await connection.close()

    return _run(connect())


def query(url: str, statement: str, *values: object) -> list[Any]:
    """Run a statement, and return the first column of its rows."""
    return [row[0] for row in _connected(url, lambda connection: connection.fetch(statement, *values))]


def execute(url: str, statements: str) -> None:
    """Run statements in one transaction."""
    _connected(url, lambda connection: connection.execute(statements))


@contextmanager
def fresh_database(*, encoding: str = "UTF8", has_schema: bool = True) -> Iterator[str]:
    """The URL of an empty database, which is dropped at the end; skips without a server."""
    name = f"usersvc_test_{uuid4().hex[:12]}"
    try:
        query(SERVER_URL, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    except (OSError, asyncpg.PostgresError) as error:
        without_password = re.sub(r"//.*@", "//", SERVER_URL)
        pytest.skip(f"no PostgreSQL answers at {without_password} ({type(error).__name__}); see TEST_POSTGRES_URL")
    try:
        # Not by urlunsplit, which omits the slashes if there is no host.
        url = f"postgresql://{urlsplit(SERVER_URL).netloc}/{name}"
        if has_schema:
            _run(open_and_close(url))
        yield url
    finally:
        query(SERVER_URL, f"DROP DATABASE {name} WITH (FORCE)")


async def open_and_close(url: str) -> None:
    async with PostgresUsers(url) as users:
        await users.check()


def empty(url: str) -> None:
    """Delete all rows, and let positions begin at 1."""
    # Faster than TRUNCATE, which creates new files.
    execute(
        url,
        """
        DELETE FROM users;
        DELETE FROM outbox;
        DELETE FROM mail_limits;
        ALTER SEQUENCE users_position RESTART;
        ALTER SEQUENCE outbox_id_seq RESTART;
        """,
    )


def connector(url: str) -> Connect:
    """A function that connects to the server of a URL, for ``proxy``."""
    parts = urlsplit(url)
    if parts.hostname:
        return partial(asyncio.open_connection, parts.hostname, parts.port or 5432)
    [folders], [port] = query(url, "SHOW unix_socket_directories"), query(url, "SHOW port")
    return partial(asyncio.open_unix_connection, f"{folders.split(',')[0].strip()}/.s.PGSQL.{port}")


def on_ports(url: str, *ports: int) -> str:
    """The URL of the same database on other ports of this host."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{user}{at}{hosts}{parts.path}?sslmode=disable"
