"""Runs the real service as a separate process."""

import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx

SERVE = (sys.executable, "-m", "usersvc", "serve")
UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "usersvc.bootstrap:create_asgi_app")

DEADLINE = 30.0
"""Seconds to wait for anything before the test fails."""

_ADDRESS = re.compile(r"Uvicorn running on (http://\S+)")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, with these settings of the service and no others."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("USERSVC_")}
    # Without a rate limit, since all clients of the tests have one address.
    ours = {"USERSVC_PORT": "0", "USERSVC_BCRYPT_COST": "4", "USERSVC_REGISTER_RATE": ""}
    return {**inherited, **ours, **settings}


def run_to_end(
    folder: Path, settings: Mapping[str, str], command: Sequence[str] = SERVE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Service:
    """A process of the service; `running` starts and stops one."""

    def __init__(self, folder: Path, settings: Mapping[str, str], command: Sequence[str]) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{settings['USERSVC_PORT']}" if "USERSVC_PORT" in settings else ""
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # In a separate group, so that its workers can be killed with it.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.pid = self._process.pid
        # A thread reads the pipe, so that the service never waits for a test to read its output.
        self._reader = threading.Thread(target=self._read, args=[self._process.stdout])
        self._reader.start()

    @property
    def output(self) -> str:
        """Everything written so far to standard output and standard error."""
        return "".join(self._lines)

    @property
    def errors(self) -> list[str]:
        """The lines of failures that it has logged so far, in console format."""
        return [line for line in self.output.splitlines() if re.search(r"\[(error|critical) *\]|Traceback", line)]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def client(self) -> httpx.Client:
        # Idle connections are closed before the service closes them, so that no request is sent on a closing one.
        limits = httpx.Limits(keepalive_expiry=2)
        return httpx.Client(base_url=self.url, trust_env=False, timeout=DEADLINE, limits=limits)

    def wait_for_output(self, pattern: str | re.Pattern[str], count: int = 1) -> list[str]:
        """Wait until a pattern has matched ``count`` times, and return the matches."""
        deadline = time.monotonic() + DEADLINE
        while True:
            has_ended = not self._reader.is_alive()
            matches: list[str] = re.findall(pattern, self.output)
            if len(matches) >= count:
                return matches
            if has_ended or time.monotonic() > deadline:
                raise AssertionError(f"no {pattern!r} in:\n{self.output}")
            time.sleep(0.01)

    def wait_until_it_responds(self) -> None:
        # A service that logs little does not print its address: then the test has chosen the port.
        self.url = self.url or self.wait_for_output(_ADDRESS)[0]
        deadline = time.monotonic() + DEADLINE
        # One client for all attempts, since creating one takes CPU time that the service needs.
        with self.client() as client:
            while True:
                # With several workers the address is printed before the first of them listens.
                with suppress(httpx.TransportError):
                    if client.get("/livez").is_success:
                        return
                assert self._process.poll() is None, f"ended at start:\n{self.output}"
                assert time.monotonic() < deadline, f"does not respond:\n{self.output}"
                time.sleep(0.02)

    def talk(self, data: bytes, *, then_half_close: bool = False) -> bytes:
        """Send bytes, and return everything received until the service closes the connection."""
        received = b""
        with socket.create_connection(self.address, DEADLINE) as connection:
            # The service may close the connection before it has read everything.
            with suppress(ConnectionError):
                connection.sendall(data)
                if then_half_close:
                    connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while piece := connection.recv(65536):
                    received += piece
        return received

    def ask_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for the end, at most until the deadline, and return the exit code."""
        code = self._process.wait(DEADLINE)
        self._reader.join()
        return code

    def stop(self) -> int:
        self.ask_to_stop()
        return self.ended()

    def kill(self) -> None:
        """Kill it with its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _read(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._lines.append(line)


StartService = Callable[..., Service]
"""Starts a service with settings, which are keyword arguments, in the folder of the test."""


@contextmanager
def running(
    folder: Path, settings: Mapping[str, str] | None = None, command: Sequence[str] = SERVE
) -> Iterator[Service]:
    """Run the service in a folder, on a free port, and stop it at the end if it still runs."""
    service = Service(folder, settings or {}, command)
    try:
        service.wait_until_it_responds()
        yield service
    finally:
        try:
            service.stop()
        except subprocess.TimeoutExpired:
            service.kill()
            raise


def break_reads(path: Path) -> None:
    """Make every query of users fail from now on, as on a damaged database."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE users RENAME TO gone")
