"""A PostgreSQL server of a test, which can be stopped, frozen and replaced."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.server import free_port
from tests.postgres import query

DATABASE = "usersvc"


def _programs() -> Path:
    """The folder of the server's programs, which Debian does not add to the PATH; skips if there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    found = shutil.which("initdb", path=os.pathsep.join([os.environ["PATH"], *map(str, reversed(folders))]))
    if found is None:
        pytest.skip("there is no initdb: the programs of a PostgreSQL server are not installed")
    # It may be a link from a folder without the other programs.
    return Path(found).resolve().parent


def _system_user() -> dict[str, str]:
    """The user and group to run the programs as: PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    with suppress(KeyError):
        pwd.getpwnam("postgres")
        return {"user": "postgres", "group": "postgres"}
    pytest.skip("PostgreSQL refuses to be run by root, and there is no user postgres")


class Server:
    """A server in a folder of its own; ``own_server`` and ``standby_of`` create and start one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{DATABASE}"
        self._programs = _programs()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs."""
        subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            check=True,
            # Not a pipe: the server would keep it open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            **_system_user(),  # type: ignore[call-overload]  # the names of a user and a group
        )

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        self._control("start", "-l", "log", "-o", f"-p {self.port}")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: ``fast`` disconnects all clients, ``immediate`` is a crash."""
        self._control("stop", "-m", mode)

    def promote(self) -> None:
        """Make a standby the primary."""
        self._control("promote")

    def freeze(self) -> None:
        """Stop all processes without disconnecting, as when the host has lost the network."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def set(self, setting: str, value: str) -> None:
        """Change a setting of the running server."""
        query(self.url, f"ALTER SYSTEM SET {setting} = '{value}'")
        query(self.url, "SELECT pg_reload_conf()")

    def wait_until_outbox_is_empty(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while waiting := query(self.url, "SELECT id FROM outbox"):
            assert time.monotonic() < deadline, f"{len(waiting)} mails are pending"
            time.sleep(0.05)

    def _control(self, command: str, *options: str) -> None:
        self.run("pg_ctl", "-D", "data", "-w", "-t", "60", command, *options)

    def _signal(self, number: signal.Signals) -> None:
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # First the postmaster, so that it starts no more processes.
        os.kill(postmaster, number)
        for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)


@contextmanager
def _new_server() -> Iterator[Server]:
    # Not a folder of pytest, which the user that runs the server cannot read.
    folder = Path(tempfile.mkdtemp(prefix="usersvc-postgres-"))
    try:
        if user := _system_user():
            shutil.chown(folder, **user)
        yield Server(folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def own_server() -> Iterator[Server]:
    """A running server with an empty database; skips if its programs are missing."""
    with _new_server() as server:
        server.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        with (server.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{server.folder}'\n")
            file.write("max_connections = 40\n")
        with _running(server):
            query(server.url.replace(f"/{DATABASE}", "/postgres"), f"CREATE DATABASE {DATABASE}")
            yield server


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A running synchronous standby: commits are acknowledged when both servers have them."""
    with _new_server() as standby:
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        standby.run("pg_basebackup", "-D", "data", "-R", "-X", "stream", "-c", "fast", "-d", source)
        with _running(standby):
            primary.set("synchronous_standby_names", "standby")
            # This commit returns when the standby is connected.
            query(primary.url, "SELECT pg_logical_emit_message(true, 'test', 'test'::text)")
            yield standby


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        with suppress(ProcessLookupError, FileNotFoundError):
            server.thaw()
        # The test may have stopped it.
        with suppress(subprocess.CalledProcessError):
            server.stop()
