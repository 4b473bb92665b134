"""The service with one, two and four processes, on SQLite and on PostgreSQL: registrations and pages a second.

    python -m benchmarks.processes postgresql:///postgres

The URL is of a PostgreSQL server where databases can be created. The bcrypt cost is 4, so that everything else counts.
Each measurement has a new service on an empty database. The rounds are interleaved, so that other load on the machine
affects all of them equally.
"""

import argparse
import asyncio
import os
import platform
import re
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from benchmarks import wrk
from benchmarks.service import Service

PROCESSES = (1, 2, 4)
STORAGES = ("SQLite", "PostgreSQL")
COST = 4
CONNECTIONS = 16
PAGE = "/users?limit=50"
_PENDING = re.compile(r"^usersvc_outbox_pending (\S+)$", re.MULTILINE)


class Ask(Protocol):
    """The kinds of load."""

    def __call__(self, base: str, /, *, seconds: float, connections: int) -> wrk.Report: ...


@asynccontextmanager
async def postgres(url: str) -> AsyncIterator[str]:
    """The URL of a new database on a server, which is dropped afterwards."""
    name = f"usersvc_processes_{uuid4().hex[:12]}"
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        try:
            yield f"postgresql://{urlsplit(url).netloc}/{name}"
        finally:
            await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@asynccontextmanager
async def sqlite() -> AsyncIterator[str]:
    """The URL of a new file, which is deleted afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/users.db"


async def measure(database_url: str, processes: int, seconds: float) -> tuple[float, float]:
    """Registrations and pages a second."""
    settings = {"USERSVC_DATABASE_URL": database_url, "USERSVC_WORKERS": str(processes)}
    async with Service(Path(), cost=COST, settings=settings) as service:
        url = f"http://127.0.0.1:{service.port}"
        # The load begins when all processes have started and the pages are full.
        await _load(wrk.register, url, seconds)
        await _rest(url)
        registrations = await _load(wrk.register, url, seconds)
        await _rest(url)
        await _load(_pages, url, seconds)
        return registrations, await _load(_pages, url, seconds)


def _pages(base: str, *, seconds: float, connections: int) -> wrk.Report:
    return wrk.get(f"{base}{PAGE}", seconds=seconds, connections=connections, headers={})


async def _load(ask: Ask, url: str, seconds: float) -> float:
    report = await asyncio.to_thread(ask, url, seconds=seconds, connections=CONNECTIONS)
    if report.errors:
        sys.exit(f"{report.errors} of {report.requests} requests got an error")
    return report.rate


async def _rest(url: str) -> None:
    """Wait until the outbox is empty, since later deliveries would affect the next measurement."""

    def pending() -> float:
        with urllib.request.urlopen(f"{url}/metrics") as response:
            [found] = _PENDING.findall(response.read().decode())
        return float(found)

    while await asyncio.to_thread(pending):  # noqa: ASYNC110  # another process can only be polled
        await asyncio.sleep(0.2)


async def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    parser.add_argument("postgres", metavar="URL", help="of a PostgreSQL on which databases may be made")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    chosen = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, bcrypt cost {COST}, {CONNECTIONS} connections, "
        f"{chosen.rounds} rounds of {chosen.seconds:g} s; median (least to most) a second"
    )
    found: dict[tuple[str, int], list[tuple[float, float]]] = {each: [] for each in product(STORAGES, PROCESSES)}
    for _ in range(chosen.rounds):
        for (storage, processes), rounds in found.items():
            async with sqlite() if storage == "SQLite" else postgres(chosen.postgres) as url:
                rounds.append(await measure(url, processes, chosen.seconds))
            registrations, pages = rounds[-1]
            print(f"  {storage:12}{processes:>8}{registrations:>28,.0f}{pages:>28,.0f}", flush=True)
    print(f"{'':12}{'processes':>10}{'registrations':>28}{'pages':>28}")
    for (storage, processes), rounds in found.items():
        print(f"{storage:12}{processes:>10}" + "".join(f"{_told(values):>28}" for values in zip(*rounds, strict=True)))


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    wrk.need_wrk()
    asyncio.run(main())
