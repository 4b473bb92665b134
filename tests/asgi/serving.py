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
APP = "tests.asgi.serving:app"
FOLDER = "ASGI_TESTS_FOLDER"
PLAIN = "ASGI_TESTS_PLAIN"


def application() -> web.Application:
    """Create the application that the environment asks for."""
    return create(pathlib.Path(os.environ[FOLDER]), plain=PLAIN in os.environ)


app = AiohttpASGI(application()) if FOLDER in os.environ else None  # what ASGI servers are started with


@dataclass(frozen=True)
class Kind:
    """A server, how it is started, and what it speaks."""

    name: str
    module: str
    arguments: str
    http2: bool = False
    plain: bool = False
    """It serves the plain form of the application."""

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", *self.arguments.format(port=port).split()]

    @property
    def missing(self) -> bool:
        return importlib.util.find_spec(self.module) is None


def _uvicorn(http: str, loop: str) -> Kind:
    options = f"--http {http} --loop {loop} --lifespan on --no-access-log --log-level warning"
    return Kind(f"uvicorn-{http}-{loop}", http, f"uvicorn {APP} --port {{port}} {options}")


def _hypercorn(http: str) -> Kind:
    # Hypercorn closes the connection of an HTTP/2 response that was broken off when it has been idle for so long.
    arguments = f"hypercorn {APP} --bind 127.0.0.1:{{port}} --keep-alive 1"
    return Kind(f"hypercorn-http{http}", "hypercorn", arguments, http2=http == "2")


def _granian(http: str) -> Kind:
    arguments = f"granian {APP} --interface asgi --port {{port}} --no-log --http {http}"
    return Kind(f"granian-http{http}", "granian", arguments, http2=http == "2")


REFERENCE = Kind("aiohttp", "aiohttp", "tests.asgi.serving {port}")
SERVERS = (
    *(_uvicorn(http, loop) for http in ("httptools", "h11") for loop in ("uvloop", "asyncio")),
    *(server(http) for server in (_hypercorn, _granian) for http in ("1", "2")),
)


def plainly(kind: Kind) -> Kind:
    """The same server, with the plain form of the application."""
    return replace(kind, name=f"{kind.name}-plain", plain=True)


# httpx calls the ASGI application itself: there is no process to start.
TRANSPORT = Kind("httpx", "httpx", "")
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


@contextlib.contextmanager
def served(kind: Kind, folder: pathlib.Path) -> Generator[int, None, None]:
    """Run a server; its port is the value.

    Raises:
        RuntimeError: it does not accept connections within 30 seconds, or ends before.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        kind.command(port),
        cwd=ROOT,
        env=os.environ | {FOLDER: str(folder), "PYTHONPATH": str(ROOT)} | ({PLAIN: "1"} if kind.plain else {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{kind.name} does not start")
            time.sleep(0.05)  # no event says when another process begins to listen
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
