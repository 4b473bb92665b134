"""A real Redis of a test's own, which may be killed, frozen and started again."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from tests.e2e.server import DEADLINE, free_port

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


class RedisServer:
    """It keeps nothing when it ends; ``redis_server`` makes one."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.port = free_port()
        self.password = f"redis-{token_hex(8)}"
        self._folder = folder
        listening = ["--port", str(self.port)]
        if certificate is not None:
            listening = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            listening += ["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate)]
        kept = ["--save", "", "--appendonly", "no", "--dir", str(folder), "--logfile", str(folder / "redis.log")]
        access = ["--bind", "127.0.0.1", "--requirepass", self.password]
        self._command = ["redis-server", *listening, *access, *kept]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, cwd=self._folder)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                assert self._process.poll() is None, (self._folder / "redis.log").read_text("utf-8")
                assert time.monotonic() < deadline
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None

    def freeze(self) -> None:
        """From now on it takes connections, as its host does for it, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextmanager
def redis_server(folder: Path, certificate: Path | None = None) -> Iterator[RedisServer]:
    """Run one; it has ended at the end."""
    server = RedisServer(folder, certificate)
    try:
        server.start()
        yield server
    finally:
        server.kill()
