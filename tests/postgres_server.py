"""A PostgreSQL server of a test's own, which may be stopped, frozen and replaced."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.server import free_port
from tests.postgres import query

DATABASE = "usersvc"


def _programs() -> Path:
    """The folder of the server's programs, which Debian keeps out of the PATH; skips where there are none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    on_path = shutil.which("initdb")
    for folder in [*([Path(on_path).parent] if on_path else []), *reversed(folders)]:
        if all((folder / program).exists() for program in ("initdb", "pg_ctl", "pg_basebackup")):
            return folder
    pytest.skip("there is no initdb: the programs of a PostgreSQL server are not installed")


def _as_somebody() -> dict[str, str]:
    """Whom to run them as: PostgreSQL refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    with suppress(KeyError):
        pwd.getpwnam("postgres")
        return {"user": "postgres", "group": "postgres"}
    pytest.skip("PostgreSQL refuses to be run by root, and there is no user postgres")


class Server:
    """A server in a folder of its own; `own_server` and `standby_of` make one, which runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/{DATABASE}"
        self._programs = _programs()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the programs that come with it."""
        subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            check=True,
            # Not a pipe: the server would keep it open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            **_as_somebody(),  # type: ignore[call-overload]  # names of users, as the call takes them
        )

    def make(self) -> None:
        """Make what a new server needs."""
        self.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        settings = f"listen_addresses = '127.0.0.1'\nunix_socket_directories = '{self.folder}'\nmax_connections = 40\n"
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(settings)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.run("pg_ctl", "-D", "data", "-w", "-t", "60", "-l", "log", "-o", f"-p {self.port}", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it: ``fast`` disconnects everybody, ``immediate`` is a crash."""
        self.run("pg_ctl", "-D", "data", "-w", "-t", "60", "-m", mode, "stop")

    def freeze(self) -> None:
        """Let it do nothing any more, and tell nobody: as when its machine has lost the network."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def promote(self) -> None:
        """Make a standby the primary."""
        self.run("pg_ctl", "-D", "data", "-w", "-t", "60", "promote")

    def set(self, setting: str, value: str) -> None:
        """Change a setting of the whole server while it runs."""
        query(self.url, f"ALTER SYSTEM SET {setting} = '{value}'")
        query(self.url, "SELECT pg_reload_conf()")

    def _signal(self, number: signal.Signals) -> None:
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # It makes no more processes once it is stopped itself.
        os.kill(postmaster, number)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                pid, parent = stat.parent.name, stat.read_text().rpartition(")")[2].split()[1]
                if int(parent) == postmaster:
                    os.kill(int(pid), number)


@contextmanager
def _folder() -> Iterator[Path]:
    # Not one of pytest's, which are closed to the user that runs the server.
    folder = Path(tempfile.mkdtemp(prefix="usersvc-postgres-"))
    whom = _as_somebody()
    try:
        if whom:
            shutil.chown(folder, **whom)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def own_server() -> Iterator[Server]:
    """A new server with an empty database, which runs; skips where the programs for it are missing."""
    _programs(), _as_somebody()
    with _folder() as folder:
        server = Server(folder)
        server.make()
        with _running(server):
            query(server.url.replace(f"/{DATABASE}", "/postgres"), f"CREATE DATABASE {DATABASE}")
            yield server


@contextmanager
def standby_of(primary: Server) -> Iterator[Server]:
    """A copy of a server that follows it; what the primary acknowledges from now on, both have."""
    with _folder() as folder:
        standby = Server(folder)
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        standby.run("pg_basebackup", "-D", "data", "-R", "-X", "stream", "-c", "fast", "-d", source)
        with _running(standby):
            primary.set("synchronous_standby_names", "standby")
            # It returns only when the standby has it too.
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
        # It may have been stopped already.
        with suppress(subprocess.CalledProcessError):
            server.stop()
