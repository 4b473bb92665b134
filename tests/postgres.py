"""A real PostgreSQL for the tests: a database of their own on a server that is there."""

import asyncio
import os
import re
import socket
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from usersvc.adapters.postgres import PostgresUsers

T = TypeVar("T")

SERVER_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql:///postgres")
"""Where databases may be made: by default on the server of this machine, as whoever runs the tests."""

# Quicker than TRUNCATE, which makes new files.
EMPTY = """
DELETE FROM users;
DELETE FROM outbox;
DELETE FROM mail_limits;
DROP TABLE IF EXISTS usersvc_copy;
ALTER SEQUENCE users_position RESTART;
ALTER SEQUENCE outbox_id_seq RESTART;
"""


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do some work in an event loop of its own, also for a test that runs in another one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def query(url: str, statement: str, *values: object) -> list[Any]:
    """The first column of what a statement gives."""

    async def rows() -> list[Any]:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return [row[0] for row in await connection.fetch(statement, *values)]
        finally:
            await connection.close()

    return run(rows())


def execute(url: str, statements: str) -> None:
    """Run statements, all of them in one transaction."""

    async def executed() -> None:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            await connection.execute(statements)
        finally:
            await connection.close()

    run(executed())


@contextmanager
def holding(url: str, statement: str) -> Iterator[None]:
    """Keep a transaction open in which a statement was run, and undo it in the end."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(url, timeout=5))
        try:
            runner.run(connection.execute(f"BEGIN; {statement}"))
            yield
        finally:
            runner.run(connection.close())


@contextmanager
def fresh_database(*, encoding: str = "UTF8", has_schema: bool = True) -> Iterator[str]:
    """The URL of a database with nobody in it, which is gone afterwards; skips without a server."""
    name = f"usersvc_test_{uuid4().hex[:12]}"
    try:
        query(SERVER_URL, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    except (OSError, asyncpg.PostgresError) as error:
        without_password = re.sub(r"//.*@", "//", SERVER_URL)
        pytest.skip(f"no PostgreSQL answers at {without_password} ({type(error).__name__}); see TEST_POSTGRES_URL")
    try:
        # Not by urlunsplit, which leaves out the slashes where there is no host.
        url = f"postgresql://{urlsplit(SERVER_URL).netloc}/{name}"
        if has_schema:
            run(_open_once(url))
        yield url
    finally:
        query(SERVER_URL, f"DROP DATABASE {name} WITH (FORCE)")


async def _open_once(url: str) -> None:
    async with PostgresUsers(url):
        pass


def empty(url: str) -> None:
    """Leave the schema alone, with positions beginning at 1."""
    execute(url, EMPTY)


def way_to(url: str) -> Callable[[], socket.socket]:
    """What connects with the server of a URL."""
    parts = urlsplit(url)
    if parts.hostname:
        address = (parts.hostname, parts.port or 5432)
        return lambda: socket.create_connection(address, 5)
    [folders], [port] = query(url, "SHOW unix_socket_directories"), query(url, "SHOW port")

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(f"{folders.split(',')[0].strip()}/.s.PGSQL.{port}")
        return connection

    return connect


def by_way_of(port: int, url: str, *more: int) -> str:
    """The same database over other ports of this machine."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{each}" for each in (port, *more))
    return f"postgresql://{f'{user}@' if user else ''}{hosts}{parts.path}?sslmode=disable"
