"""The servers that serve the application under test, each as a process of its own."""

import contextlib
import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace

from aiohttp import web

from tests.asgi.application import create
from usersvc.asgi import AiohttpASGI

ROOT = pathlib.Path(__file__).resolve().parents[2]
FACTORY = "tests.asgi.serving:factory"
FOLDER = "ASGI_TESTS_FOLDER"
PLAIN = "ASGI_TESTS_PLAIN"


def application() -> web.Application:
    """Make the application that the environment asks for."""
    return create(pathlib.Path(os.environ[FOLDER]), plain=PLAIN in os.environ)


def factory() -> AiohttpASGI:
    """Make the ASGI application; what ASGI servers are started with."""
    return AiohttpASGI(application())


app = AiohttpASGI(application()) if FOLDER in os.environ else None  # hypercorn's and granian's


@dataclass(frozen=True)
class Kind:
    """A server, how it is started, and what it speaks."""

    name: str
    module: str
    arguments: tuple[str, ...]
    http2: bool = False
    plain: bool = False
    """It serves the plain form of the application."""

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
SERVERS = (
    *(_uvicorn(http, loop) for http in ("httptools", "h11") for loop in ("uvloop", "asyncio")),
    _hypercorn("hypercorn-http1", http2=False),
    _hypercorn("hypercorn-http2", http2=True),
    _granian("granian-http1", http2=False),
    _granian("granian-http2", http2=True),
)


def plainly(kind: Kind) -> Kind:
    """The same server, with the plain form of the application."""
    return replace(kind, name=f"{kind.name}-plain", plain=True)


# httpx calls the ASGI application itself: there is no process to start.
TRANSPORT = Kind("httpx", "httpx", ())
PLAINLY = {"uvicorn-httptools-uvloop", "hypercorn-http2", "granian-http1", TRANSPORT.name}
KINDS = (*SERVERS, TRANSPORT, *(plainly(kind) for kind in (*SERVERS, TRANSPORT) if kind.name in PLAINLY))
DEFAULT = {
    # What `usersvc serve` runs on; the plain application takes all shortcuts of the shim.
    "uvicorn-httptools-uvloop-plain",
    # HTTP/2; the other form of the application takes no shortcut.
    "hypercorn-http2",
    # The one server for which the shim ends a response differently, and the one that is not written in Python.
    "granian-http1",
}
"""The servers that are tested without `--every-pair`."""


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@contextlib.contextmanager
def served(kind: Kind, folder: pathlib.Path) -> Generator[int, None, None]:
    """Run a server; its port is the value.

    Raises:
        RuntimeError: it does not answer within 30 seconds, or ends before.
    """
    port = free_port()
    process = subprocess.Popen(
        kind.command(port),
        cwd=ROOT,
        env={
            **os.environ,
            FOLDER: str(folder),
            "PYTHONPATH": str(ROOT),
            **({PLAIN: "1"} if kind.plain else {}),
        },
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
    web.run_app(application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
