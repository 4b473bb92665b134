"""The servers that serve the application under test, each as a process of its own."""

import contextlib
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from aiohttp import web

from tests.asgi.application import create
from usersvc.asgi import AiohttpASGI

ROOT = pathlib.Path(__file__).resolve().parents[2]
FACTORY = "tests.asgi.serving:factory"
FOLDER = "ASGI_TESTS_FOLDER"
HANDLER_CANCELLATION = "ASGI_TESTS_HANDLER_CANCELLATION"


def factory() -> AiohttpASGI:
    """Make the ASGI application; what ASGI servers are started with."""
    return AiohttpASGI(
        create(pathlib.Path(os.environ[FOLDER])), handler_cancellation=HANDLER_CANCELLATION in os.environ
    )


app = (
    AiohttpASGI(create(pathlib.Path(os.environ[FOLDER]))) if FOLDER in os.environ else None
)  # hypercorn's and granian's


@dataclass(frozen=True)
class Kind:
    """A server, how it is started, and what it speaks."""

    name: str
    module: str
    arguments: tuple[str, ...]
    http2: bool = False

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", *(argument.format(port=port) for argument in self.arguments)]

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None


def _uvicorn(http: str, loop: str) -> Kind:
    arguments = (
        "uvicorn",
        FACTORY,
        "--factory",
        "--port",
        "{port}",
        "--http",
        http,
        "--loop",
        loop,
        "--lifespan",
        "on",
    )
    return Kind(f"uvicorn-{http}-{loop}", http, (*arguments, "--no-access-log", "--log-level", "warning"))


def _hypercorn(name: str, *, http2: bool) -> Kind:
    # Hypercorn closes the connection of an HTTP/2 response that was broken off when it has been idle for so long.
    arguments = ("hypercorn", "tests.asgi.serving:app", "--bind", "127.0.0.1:{port}", "--keep-alive", "1")
    return Kind(name, "hypercorn", arguments, http2=http2)


def _granian(name: str, *, http2: bool) -> Kind:
    arguments = ("granian", "tests.asgi.serving:app", "--interface", "asgi", "--port", "{port}", "--no-log")
    return Kind(name, "granian", (*arguments, "--http", "2" if http2 else "1"), http2=http2)


REFERENCE = Kind("aiohttp", "aiohttp", ("tests.asgi.serving", "{port}"))
KINDS = (
    _uvicorn("httptools", "uvloop"),
    _uvicorn("h11", "asyncio"),
    _hypercorn("hypercorn-http1", http2=False),
    _hypercorn("hypercorn-http2", http2=True),
    _granian("granian-http1", http2=False),
    _granian("granian-http2", http2=True),
)


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextlib.contextmanager
def served(kind: Kind, folder: pathlib.Path, **environment: str) -> Iterator[int]:
    """Run a server; its port is the value.

    Raises:
        RuntimeError: it does not answer within 30 seconds, or ends before.
    """
    port = free_port()
    process = subprocess.Popen(
        kind.command(port),
        cwd=ROOT,
        env={**os.environ, FOLDER: str(folder), "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{kind.name} does not start")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)  # nothing tells when another process begins to listen
        yield port
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:  # some servers wait for connections that a test has left open
            process.kill()
            process.wait()


if __name__ == "__main__":
    web.run_app(create(pathlib.Path(os.environ[FOLDER])), host="127.0.0.1", port=int(sys.argv[1]), print=None)
