"""A real nginx with the configuration of the project, except its addresses, in front of services of a test."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import DEADLINE, free_port

ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "tests" / "integration" / "localhost.pem"
TRUST = ssl.create_default_context(cafile=str(CERTIFICATE))

needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")


class Proxy:
    """An nginx that accepts requests."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"https://localhost:{port}"
        self._log = folder / "access.log"

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8")

    def client(self, address: str = "127.0.0.1") -> httpx.Client:
        """A client with an address of this host."""
        transport = httpx.HTTPTransport(verify=TRUST, local_address=address)
        return httpx.Client(base_url=self.url, transport=transport, timeout=DEADLINE)


def configuration(folder: Path, port: int, upstreams: list[tuple[str, int]]) -> str:
    """The one in ``deploy/``, with other addresses and files."""
    text = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text("utf-8")
    servers = iter(upstreams)

    def upstream(_: re.Match[str]) -> str:
        host, its_port = next(servers)
        return f"server {host}:{its_port} "

    text = re.sub(r"server 172\.31\.250\.\d+:8000 ", upstream, text)
    for here, there in (
        (" /tmp/", f" {folder}/"),
        ("/dev/stderr", f"{folder}/error.log"),
        ("/dev/stdout", f"{folder}/access.log"),
        ("/run/secrets/tls-certificate", str(CERTIFICATE)),
        ("/run/secrets/tls-key", str(CERTIFICATE)),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:8081", f"127.0.0.1:{free_port()}"),
        ("worker_processes auto", "worker_processes 2"),
        # All clients of a test have few addresses.
        ("rate=50r/s", "rate=5000r/s"),
        ("limit_conn connections 50", "limit_conn connections 500"),
    ):
        assert here in text, here
        text = text.replace(here, there)
    return text


@contextmanager
def proxy(folder: Path, upstreams: list[tuple[str, int]]) -> Iterator[Proxy]:
    """Run one in front of two addresses."""
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(configuration(folder, port, upstreams), "utf-8")
    # A master process that is root would start workers that may not read the folder of the test.
    globally = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    command = ["nginx", "-p", str(folder), "-c", str(file), "-e", str(folder / "error.log"), "-g", globally]
    with listening(command, port):
        yield Proxy(folder, port)


@contextmanager
def listening(command: list[str], port: int) -> Iterator[None]:
    """Run a server that listens on a port of this host."""
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + DEADLINE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(DEADLINE)


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[tuple[str, int]]:
    """Run a server of the standard library without its log; return its address."""
    handler.log_message = lambda *_: None  # type: ignore[method-assign]  # it would write to standard error
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield "127.0.0.1", server.server_port
        finally:
            server.shutdown()
            thread.join()
