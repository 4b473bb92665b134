"""A Redis server of a test, which can be killed, frozen and started again."""

import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

import pytest

from tests.e2e.server import DEADLINE, free_port

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class RedisServer:
    """A server that stores nothing on the disk; ``redis_server`` creates one."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.port = free_port()
        self.password = f"redis-{token_hex(8)}"
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self._log = folder / "redis.log"
        options = f"--save '' --appendonly no --bind 127.0.0.1 --requirepass {self.password} --dir {folder}"
        if certificate is None:
            options += f" --port {self.port}"
        else:
            options += f" --port 0 --tls-port {self.port} --tls-auth-clients no"
            options += f" --tls-cert-file {certificate} --tls-key-file {certificate}"
        self._command = ["redis-server", *shlex.split(options), "--logfile", str(self._log)]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + DEADLINE
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert self._process.poll() is None, self._log.read_text("utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE)

    def freeze(self) -> None:
        """Stop the process: the kernel still accepts connections for it, but nothing is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(folder: Path, certificate: Path | None = None) -> Iterator[RedisServer]:
    """Run a server; it is killed at the end."""
    server = RedisServer(folder, certificate)
    try:
        yield server
    finally:
        server.kill()
