"""More registrations than can be hashed, while other clients read: the responses and their latency.

    python -m benchmarks.flood

``usersvc serve`` runs on a SQLite file of some thousand users, without a rate limit. One process floods it with
registrations from more connections than the queue has slots, and retries soon after each rejection, ignoring
``Retry-After``. Another process reads at a fixed, low rate, and measures from the time at which a request was due. The
rate of bcrypt alone is measured before and after each round.

A second flood follows in each round: paths of 8,000 slashes, on few connections and at a low rate.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt

from benchmarks.service import Service
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

COST = 12
WORKERS = os.cpu_count() or 1
PAGE, LIVEZ = "/users?limit=50", "/livez"
P99_GOAL = 5.0
"""Milliseconds of a page during the flood; more than twice as much is a failure."""
RATIO_GOAL = 3.0
"""The median of a page during the flood, relative to an idle service."""
HASHES_GOAL = 0.95
"""Hashes a second, relative to bcrypt alone."""
PATH_CONNECTIONS, PATH_RATE = 40, 71
"""Of the flood of long paths: 71 requests a second are 570 kB/s."""
LIVEZ_GOAL = 5.0
"""Milliseconds of the 99th percentile of ``/livez`` during the flood of long paths."""


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--queue", type=int, default=64, help="USERSVC_HASH_QUEUE")
    parser.add_argument("--connections", type=int, default=0, help="that flood; 0: queue, threads, and 64 more")
    parser.add_argument("--pause", type=float, default=0.25, help="seconds after which who was refused comes back")
    parser.add_argument("--rate", type=float, default=50, help="pages a second, and probes a second")
    parser.add_argument("--users", type=int, default=3000, help="in the file beforehand")
    return parser.parse_args()


async def main(options: argparse.Namespace) -> None:
    """Run all rounds and print the results."""
    connections = options.connections or options.queue + WORKERS + 64
    print(
        f"Python {sys.version.split()[0]}, {WORKERS} cores, bcrypt cost {COST}, {options.users} users, "
        f"{connections} connections for {WORKERS} threads and {options.queue} places, back {options.pause} s after a "
        f"refusal; {options.rounds} rounds of {options.seconds:g} s"
    )
    bare: list[float] = [bare_hashes()]
    idle: dict[str, list[float]] = {PAGE: [], LIVEZ: []}
    flooded: dict[str, list[float]] = {PAGE: [], LIVEZ: []}
    responses: dict[str, list[float]] = {"201": [], "503": []}
    paths: dict[str, list[float]] = {}
    rates: list[float] = []
    retry_after: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "flood.db"
        await fill(database, options.users)
        settings = {"USERSVC_REGISTER_RATE": "", "USERSVC_HASH_QUEUE": str(options.queue)}
        async with Service(database, cost=COST, settings=settings) as service:
            reads = ["read", service.port, options.seconds, options.rate, PAGE, LIVEZ]
            floods = ["flood", service.port, options.seconds, connections, options.pause]
            for _ in range(options.rounds):
                add(idle, await load(*reads))
                # The reader starts when the queue is full, and ends first.
                flooding = asyncio.create_task(load(*floods))
                await asyncio.sleep(1)
                reads_meanwhile = ["read", service.port, options.seconds - 2, *reads[3:]]
                add(flooded, await load(*reads_meanwhile))
                seen = await flooding
                add(responses, seen["taken"])
                retry_after.update(map(int, seen["retry_after"]))
                accepted_at = sorted(seen["accepted_at"])
                # From the first to the last one: the first hashes were started before the measurement.
                rates.append((len(accepted_at) - WORKERS) / (accepted_at[-1] - accepted_at[0]))
                # The threads complete hashes for clients that have disconnected.
                await asyncio.sleep(2)
                bare.append(bare_hashes())
                add(paths, await flood_with_paths(service.port, options))
    print(f"{'':24} {'count':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    row("GET page, idle", idle[PAGE])
    row("GET page, flood", flooded[PAGE])
    row("GET /livez, idle", idle[LIVEZ])
    row("GET /livez, flood", flooded[LIVEZ])
    row("GET /livez, long paths", paths[LIVEZ])
    row("GET long path (404)", paths["404"])
    row("POST accepted (201)", responses.pop("201"))
    row("POST refused (503)", responses.pop("503"))
    for status, seconds in responses.items():
        row(f"POST {status}: unexpected", seconds)
    print(f"Retry-After was {min(retry_after)} to {max(retry_after)} s")
    rate, bound = statistics.mean(rates), statistics.median(bare)
    ratio = percentile(flooded[PAGE], 50) / percentile(idle[PAGE], 50)
    p99 = percentile(flooded[PAGE], 99) * 1000
    print(f"accepted {rate:.2f}/s beside bcrypt alone {bound:.2f}/s: {rate / bound:.2f} (goal: {HASHES_GOAL})")
    print(f"page p50, flood / idle: {ratio:.2f} (goal: at most {RATIO_GOAL:g})")
    print(f"page p99 under the flood: {p99:.2f} ms (goal: at most {P99_GOAL:g} ms)")
    livez_p99 = percentile(paths[LIVEZ], 99) * 1000
    print(f"/livez p99 under long paths: {livez_p99:.2f} ms (goal: at most {LIVEZ_GOAL:g} ms)")


async def flood_with_paths(port: int, options: argparse.Namespace) -> dict[str, list[float]]:
    """Request long paths and ``/livez`` at the same time; return the seconds of both, by path or status."""
    flooding = asyncio.create_task(load("paths", port, options.seconds, PATH_CONNECTIONS, PATH_RATE))
    await asyncio.sleep(1)
    meanwhile: dict[str, list[float]] = await load("read", port, options.seconds - 2, options.rate, LIVEZ)
    flood: dict[str, list[float]] = await flooding
    return meanwhile | flood


def add(to: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    """Add the results of a round."""
    for name, seconds in more.items():
        to.setdefault(name, []).extend(seconds)


def row(what: str, seconds: Sequence[float]) -> None:
    """Print a line of the table."""
    if not seconds:
        print(f"{what:24} {0:8}")
        return
    times = (percentile(seconds, 50), percentile(seconds, 99), max(seconds))
    print(f"{what:24} {len(seconds):8}", *(f"{time * 1000:8.2f}" for time in times))


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of values (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -int(-percent * len(ranked) // 100) - 1)]


async def load(*command: object) -> Any:
    """Run clients in a separate process, and return their results."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.flood.load", *map(str, command), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        sys.exit("the load generator failed")
    return json.loads(output)


def bare_hashes() -> float:
    """The rate of bcrypt alone on all cores, in hashes a second."""
    total = 8 * WORKERS
    salt = bcrypt.gensalt(COST)
    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(lambda _: bcrypt.hashpw(b"correct horse battery staple", salt), range(total)))
    return total / (time.perf_counter() - began)


async def fill(database: Path, users: int) -> None:
    """Create the database file, with a number of users."""
    async with SqliteUsers(database) as stored:
        for number in range(users):
            registration = User.register(email=f"user{number}@example.com", password="correct horse battery", age=30)
            await stored.add(registration.complete(PasswordHash("no hash"), at=datetime.now(UTC)))


if __name__ == "__main__":
    asyncio.run(main(arguments()))
