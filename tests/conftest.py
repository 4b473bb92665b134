"""A PostgreSQL database for the tests that need one, and the option of `tests/asgi`."""

from collections.abc import Iterator

import pytest

from tests.postgres import empty, fresh_database


def pytest_addoption(parser: pytest.Parser) -> None:
    # Here and not in tests/asgi, because pytest reads options only from the conftest files that it loads first.
    parser.addoption(
        "--every-pair", action="store_true", help="run tests/asgi on all servers and protocols, not on three"
    )


@pytest.fixture(scope="session")
def postgres_database() -> Iterator[str]:
    """The URL of a database for the whole run; skips the test if no server responds."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """The URL of an empty database."""
    empty(postgres_database)
    return postgres_database
