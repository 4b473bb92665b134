"""A PostgreSQL database for the tests that need one, the option of `tests/asgi`, and a summary of skipped tests."""

from collections import Counter
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
    """The URL of a database for the whole run; skips the tests that need it if no server responds."""
    with fresh_database() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_database: str) -> str:
    """The URL of a database without users."""
    empty(postgres_database)
    return postgres_database


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line per reason for which tests were skipped, at the end."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    # For a skipped test, pytest reports the file, the line and the reason.
    reasons = Counter(place[2].removeprefix("Skipped: ") for place in skipped if isinstance(place, tuple))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
