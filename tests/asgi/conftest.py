"""Servers, started once for all tests that ask for them; by default three of them."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.asgi.application import fill
from tests.asgi.serving import DEFAULT, REFERENCE, Kind, served


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--every-pair`, leave out the servers that are not in `DEFAULT`."""
    if config.getoption("--every-pair", default=True):  # True: `--confcutdir tests/asgi` leaves the option out
        return
    run = {*DEFAULT, REFERENCE.name}
    left_out = [
        item
        for item in items
        if hasattr(item, "callspec")
        and isinstance(kind := item.callspec.params.get("kind"), Kind)
        and kind.name not in run
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


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
