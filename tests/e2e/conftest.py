"""A service for the tests that change no settings, and a way to start others."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Service, StartService, running


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartService]:
    with ExitStack() as stack:

        def start(**settings: str) -> Service:
            return stack.enter_context(running(tmp_path, settings))

        yield start
