"""The service and its peers, each as a separate process on a file of users."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.clock import timestamp

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20

OURS = "usersvc"
FASTAPI = "FastAPI + SQLAlchemy"
FLOOR = "floor: Starlette by hand"
OWN_SERVER = "usersvc on aiohttp's server"

TOKEN = "a-token-for-the-benchmark"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}

_USERS_PYTHON = ROOT / ".tools/users/bin/python"
"""Of an environment without the packages of the peers, some of which the service would import."""

_UVICORN = ("uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--port")
_COMMANDS = {
    OURS: ("usersvc", "serve"),
    FASTAPI: (*_UVICORN, "{port}", "benchmarks.peers.fastapi_app:app"),
    FLOOR: (*_UVICORN, "{port}", "benchmarks.peers.floor:app"),
    OWN_SERVER: ("benchmarks.peers.aiohttp_own",),
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has started."""

    name: str
    url: str
    pid: int
    first_response: float
    """Seconds from the start of the process to its first response."""

    def resident(self) -> float:
        """Resident memory, in MiB."""
        pages = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / MIB

    def rest(self) -> None:
        """Wait until it is idle: clients that have disconnected may have left work behind."""
        before = -1.0
        while (now := self._cpu_seconds()) > before:
            before = now
            time.sleep(0.5)

    def _cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        # In ticks of 10 ms; an idle event loop uses less.
        return float(int(fields[11]) + int(fields[12]))


@contextmanager
def running(name: str, database: Path, *, cost: int = 12) -> Iterator[Server]:
    """Start a server on a file of users, wait for its first response, and stop it at the end.

    Raises:
        SystemExit: it does not start.
    """
    if not _USERS_PYTHON.exists():
        sys.exit("the service's own environment is missing: use make bench")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    began = time.perf_counter()
    process = subprocess.Popen(
        [
            _USERS_PYTHON if name == OURS else sys.executable,
            "-m",
            *(word.format(port=port) for word in _COMMANDS[name]),
        ],
        cwd=ROOT,
        env=_environment(port, database, cost),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not _responds(url):
            if process.poll() is not None or time.perf_counter() - began > 60:
                sys.exit(f"{name} does not start")
            time.sleep(0.002)
        yield Server(name, url, process.pid, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _environment(port: int, database: Path, cost: int) -> dict[str, str]:
    ours: Mapping[str, str] = {
        "USERSVC_PORT": str(port),
        "USERSVC_DATABASE_URL": f"sqlite:///{database}",
        "USERSVC_BCRYPT_COST": str(cost),
        "USERSVC_PASSWORD_PEPPER": "a pepper for the benchmark",
        "USERSVC_ADMIN_TOKEN": TOKEN,
        # All clients have one address.
        "USERSVC_REGISTER_RATE": "",
        # The access log is written at level info.
        "USERSVC_LOG_LEVEL": "warning",
        "BENCH_DATABASE": str(database),
        "BENCH_COST": str(cost),
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("USERSVC_")} | dict(ours)


def _responds(url: str) -> bool:
    with (
        contextlib.suppress(urllib.error.URLError, OSError),
        urllib.request.urlopen(f"{url}/livez", timeout=5) as response,
    ):
        return bool(response.status == 200)
    return False


def make_users(path: Path, how_many: int) -> None:
    """Create a database file of the service with users, without hashing passwords or sending mails."""
    asyncio.run(_make_file(path))
    chance = random.Random(0)
    began = time.time()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.executemany(
            "INSERT INTO users (id, email, age, registered_at, mailbox, password_hash) VALUES (?, ?, ?, ?, ?, ?)",
            (_row(number, began, chance) for number in range(1, how_many + 1)),
        )
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _make_file(path: Path) -> None:
    async with SqliteUsers(path):
        pass


def _row(number: int, began: float, chance: random.Random) -> tuple[str, str, int, str, str, str]:
    user_id = UUID(int=(number << 80) | 7 << 76 | chance.getrandbits(62) | 2 << 62)
    email = f"user{number}@example.com"
    at = timestamp(datetime.fromtimestamp(began + number / 1000, UTC))
    return str(user_id), email, 18 + number % 113, at, email, f"$hmac-sha384-bcrypt$$2b$12${'x' * 53}"
