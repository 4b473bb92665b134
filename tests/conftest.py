"""A PostgreSQL database for the tests that need one."""

from collections.abc import Iterator

import pytest

from tests.postgres import empty, fresh_database


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    """The URL of a database for the whole run, which skips what needs it where no server answers."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """The URL of a database with nobody in it."""
    empty(postgres_database)
    return postgres_database
