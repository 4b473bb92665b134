"""A real PostgreSQL for the tests: a database of their own on a server that is there."""

import asyncio
import os
from collections.abc import Coroutine, Iterator
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
def fresh_database() -> Iterator[str]:
    """The URL of a database with the schema and nobody in it, which is gone afterwards; skips without a server."""
    name = f"usersvc_test_{uuid4().hex[:12]}"
    try:
        query(SERVER_URL, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
    except (OSError, asyncpg.PostgresError) as error:
        pytest.skip(f"no PostgreSQL answers ({type(error).__name__}); TEST_POSTGRES_URL may name one")
    try:
        url = urlsplit(SERVER_URL)._replace(path=f"/{name}").geturl()
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
