"""Servers, started once for all tests that ask for them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.asgi.application import fill
from tests.asgi.serving import Kind, served


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("served")
    fill(path)
    return path


@pytest.fixture(scope="session")
def port_of(folder: pathlib.Path) -> Iterator[Callable[[Kind], int]]:
    """The port of a server, which is started when it is first asked for."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as stack:

        def port_of(kind: Kind) -> int:
            if kind.missing:
                pytest.skip(f"{kind.module} is not installed")
            if kind.name not in ports:
                ports[kind.name] = stack.enter_context(served(kind, folder))
            return ports[kind.name]

        yield port_of
