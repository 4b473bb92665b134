"""Measures one and two processes of the service, and the costs for the simulation; writes ``measured.json``.

python -m benchmarks.simulation.measure postgresql:///test
"""

import asyncio
import json
import os
import platform
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import bcrypt

from benchmarks import wrk
from benchmarks.servers import make_users
from benchmarks.service import Service
from benchmarks.simulation.model import Costs
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.clock import utc_now
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

MEASURED = Path(__file__).with_name("measured.json")
SECONDS, SLOW = 4.0, 10.0
"""Seconds of a run, and of one with a high bcrypt cost."""
CONNECTIONS = 16
COSTS = (4, 8, 10, 12)
USERS = 10_000
SCHEMA = f"usersvc_simulation_{os.getpid()}"
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Rate:
    """A measured rate of clients that send the next request at once."""

    what: str
    """``registrations`` or ``pages``."""
    processes: int
    cost: int
    """The bcrypt cost."""
    rate: float
    """Requests a second."""


@dataclass(frozen=True, slots=True)
class Load:
    """A run, and the CPU time of each request, in seconds."""

    rate: float
    main_threads: float
    other_threads: float
    client: float


async def load(folder: Path, *, what: str, processes: int, cost: int) -> Load:
    """Send one kind of request to a new service on a new file repeatedly."""
    database = folder / f"{what}-{processes}-{cost}.db"
    if what == "pages":
        await asyncio.to_thread(make_users, database, USERS)
    async with Service(database, cost=cost, settings={"USERSVC_WORKERS": str(processes)}) as service:
        url = f"http://127.0.0.1:{service.port}"
        ask = _pages if what == "pages" else _registrations
        # Until all processes have started and are warm.
        await asyncio.to_thread(ask, url, SECONDS)
        workers = service.workers()
        before, client_before = [_cpu(pid) for pid in workers], _client_cpu()
        report = await asyncio.to_thread(ask, url, SLOW if what == "registrations" and cost > COSTS[1] else SECONDS)
        after, client_after = [_cpu(pid) for pid in workers], _client_cpu()
    assert report.errors == 0, report
    main = sum(end[0] - begin[0] for begin, end in zip(before, after, strict=True))
    other = sum(end[1] - begin[1] for begin, end in zip(before, after, strict=True))
    each = 1 / report.requests
    return Load(report.rate, main * each, other * each, (client_after - client_before) * each)


def _pages(url: str, seconds: float) -> wrk.Report:
    return wrk.get(f"{url}/users?limit=50", seconds=seconds, connections=CONNECTIONS, headers={})


def _registrations(url: str, seconds: float) -> wrk.Report:
    return wrk.register(url, seconds=seconds, connections=CONNECTIONS)


def _cpu(pid: int) -> tuple[float, float]:
    """The CPU time of the main thread of a process, and of all others, in seconds."""
    main = other = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text("ascii").rsplit(")", 1)[1].split()
        seconds = (int(fields[11]) + int(fields[12])) * TICK
        if int(task.name) == pid:
            main += seconds
        else:
            other += seconds
    return main, other


def _client_cpu() -> float:
    """Of children that have ended: only wrk, until the services end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def hash_seconds(cost: int) -> float:
    """The time of a single hash."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        bcrypt.hashpw(b"x" * 64, bcrypt.gensalt(cost))
        took.append(time.perf_counter() - began)
    return statistics.median(took)


async def writes(folder: Path, how_many: int = 500) -> tuple[float, float, float, float]:
    """The time to add a user and to complete a delivery: CPU time and all other time, in seconds."""
    async with SqliteUsers(folder / "writes.db") as users:
        people = [
            User.register(email=f"user{number}@example.com", password="correct horse battery", age=30).complete(
                PasswordHash("$hmac-sha384-bcrypt$$2b$12$" + "x" * 53), at=datetime.now(UTC)
            )
            for number in range(how_many)
        ]
        began, cpu = time.perf_counter(), time.process_time()
        for person in people:
            await users.add(person)
        add, add_cpu = time.perf_counter() - began, time.process_time() - cpu
        now = utc_now()
        entries = await users.outbox.lease(now=now, until=now + timedelta(seconds=90), limit=how_many)
        began, cpu = time.perf_counter(), time.process_time()
        for entry in entries:
            await users.outbox.delivered(entry)
        delivered, delivered_cpu = time.perf_counter() - began, time.process_time() - cpu
    assert len(entries) == how_many
    return (
        add_cpu / how_many,
        max(0.0, add - add_cpu) / how_many,
        delivered_cpu / how_many,
        max(0.0, delivered - delivered_cpu) / how_many,
    )


async def postgres(url: str, how_many: int = 2000, many: int = 100_000) -> tuple[float, float]:
    """The time to add a user durably to PostgreSQL, in seconds, and the bytes of a user.

    Users are added one after the other, as the service does, to a table with the same constraints.
    """
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"""
            CREATE SCHEMA {SCHEMA};
            SET search_path = {SCHEMA};
            CREATE TABLE users (
                position bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, id uuid NOT NULL UNIQUE,
                mailbox text COLLATE "C" NOT NULL UNIQUE, email text NOT NULL, age integer NOT NULL,
                password_hash text NOT NULL, registered_at timestamptz NOT NULL
            );
            CREATE TABLE outbox (
                id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, user_id uuid NOT NULL, email text NOT NULL
            );
        """)
        add = await connection.prepare("""
            WITH turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(8)),
            added AS (
                INSERT INTO users (id, mailbox, email, age, password_hash, registered_at)
                SELECT gen_random_uuid(), $1, $1, 30, $2, now() FROM turn RETURNING id
            ),
            event AS (INSERT INTO outbox (user_id, email) SELECT id, $1 FROM added)
            SELECT pg_notify('simulation', '') FROM added
        """)
        secret = "$hmac-sha384-bcrypt$$2b$12$" + "x" * 53
        began = time.perf_counter()
        for number in range(how_many):
            await add.fetchval(f"user{number}@example.com", secret)
        seconds = (time.perf_counter() - began) / how_many
        await connection.execute(
            """
            INSERT INTO users (id, mailbox, email, age, password_hash, registered_at)
            SELECT gen_random_uuid(), 'person' || n || '@example.com', 'person' || n || '@example.com', 30, $1, now()
            FROM generate_series(1, $2::integer) AS n
            """,
            secret,
            many,
        )
        size = await connection.fetchval("SELECT pg_total_relation_size('users')")
    finally:
        await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        await connection.close()
    return seconds, size / (how_many + many)


async def measure(folder: Path, postgres_url: str) -> dict[str, Any]:
    """Run all measurements."""
    commit, postgres_bytes = await postgres(postgres_url)
    add_cpu, add_disk, outbox_cpu, outbox_disk = await writes(folder)
    costs = Costs(
        hash={cost: hash_seconds(cost) for cost in COSTS},
        register_loop=0,
        page_loop=0,
        page_store=0,
        client_page=0,
        add_cpu=add_cpu,
        add_disk=add_disk,
        outbox_cpu=outbox_cpu,
        outbox_disk=outbox_disk,
        commit=commit,
    )
    rates: list[Rate] = []
    for cost in COSTS:
        for processes in (1, 2):
            run = await load(folder, what="registrations", processes=processes, cost=cost)
            rates.append(Rate("registrations", processes, cost, run.rate))
            if (cost, processes) == (COSTS[0], 1):
                costs = replace(costs, register_loop=run.main_threads)
    for processes in (1, 2):
        run = await load(folder, what="pages", processes=processes, cost=12)
        rates.append(Rate("pages", processes, 12, run.rate))
        if processes == 1:
            costs = replace(costs, page_loop=run.main_threads, page_store=run.other_threads, client_page=run.client)
    await asyncio.to_thread(make_users, folder / "size.db", 10 * USERS)
    return {
        "conditions": {
            "date": datetime.now(UTC).date().isoformat(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "connections": CONNECTIONS,
        },
        "costs": asdict(costs),
        "rates": [asdict(rate) for rate in rates],
        "bytes_a_user": {
            "sqlite": (folder / "size.db").stat().st_size / (10 * USERS),
            "postgresql": postgres_bytes,
        },
    }


def read() -> tuple[Mapping[str, Any], Costs, list[Rate], Mapping[str, float]]:
    """The measurements: conditions, costs, rates, and the bytes of a user in each database."""
    document = json.loads(MEASURED.read_text("utf-8"))
    costs = document["costs"]
    hashes = {int(cost): seconds for cost, seconds in costs.pop("hash").items()}
    return (
        document["conditions"],
        Costs(hash=hashes, **costs),
        [Rate(**rate) for rate in document["rates"]],
        document["bytes_a_user"],
    )


if __name__ == "__main__":
    wrk.need_wrk()
    with tempfile.TemporaryDirectory() as name:
        found = asyncio.run(measure(Path(name), sys.argv[1]))
    MEASURED.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(json.dumps(found, indent=1))
