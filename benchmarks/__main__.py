"""The service's rates, each beside the bare work that it cannot do without, in one run on this machine.

    python -m benchmarks

A real uvicorn process on a fresh SQLite file; requests over loopback from this process. A ratio of 1.0 would mean that
everything around the bare work is free.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import bcrypt
import orjson

from benchmarks.service import Service, connections, request
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import Order

ROUNDS = 5
COST = 12
USERS = 1000
PAGE = 100
WORKERS = os.cpu_count() or 1

numbers = count()


async def main() -> None:
    """Run everything and print one table."""
    print(f"Python {sys.version.split()[0]}, {WORKERS} cores, bcrypt cost {COST}, median of {ROUNDS} rounds")
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "bench.db"
        starts = [await startup(Path(folder) / f"start{n}.db") for n in range(ROUNDS)]
        print(f"start-up to first answer   {statistics.median(starts) * 1000:8.0f} ms")
        async with Service(database, cost=4) as service:
            print(f"idle memory (resident)     {service.resident_mebibytes():8.1f} MiB")
            await load(service.port, USERS, 16, register)
        async with Service(database, cost=COST) as service:
            rows = [
                await compared("POST /register", lambda: registrations(service.port), bare_hashes, "bcrypt alone"),
                await compared(
                    f"GET /users, {PAGE} a page",
                    lambda: requests(service.port, f"/users?limit={PAGE}"),
                    lambda: bare_pages(database),
                    "the same page: SQLite and orjson alone",
                ),
                await compared(
                    f"GET /users, {PAGE} a page",
                    lambda: requests(service.port, f"/users?limit={PAGE}"),
                    lambda: requests(service.port, "/livez"),
                    "GET /livez",
                ),
            ]
    print(f"{'what':26} {'per second':>10}   {'beside':40} {'per second':>10} {'ratio':>6}")
    for what, rate, beside, peer, ratio in rows:
        print(f"{what:26} {rate:10.1f}   {beside:40} {peer:10.1f} {ratio:6.2f}")


Rate = Callable[[], Awaitable[float]]


async def compared(what: str, ours: Rate, bare: Rate, beside: str) -> tuple[str, float, str, float, float]:
    """Both rates, measured in turns."""
    pairs = [(await ours(), await bare()) for _ in range(ROUNDS)]
    return (
        what,
        statistics.median(rate for rate, _ in pairs),
        beside,
        statistics.median(peer for _, peer in pairs),
        statistics.median(rate / peer for rate, peer in pairs),
    )


async def startup(database: Path) -> float:
    """Seconds from starting the process to its first answer."""
    began = time.perf_counter()
    async with Service(database, cost=COST):
        return time.perf_counter() - began


async def registrations(port: int) -> float:
    """Registrations a second, with more clients than cores."""
    return await load(port, 12 * WORKERS, 4 * WORKERS, register)


async def requests(port: int, path: str) -> float:
    """Answers a second to one request over and over."""

    async def get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await request(reader, writer, "GET", path) == 200

    return await load(port, 3000, 16, get)


async def register(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    body = {"email": f"user{next(numbers)}@example.com", "password": "correct horse battery staple", "age": 30}
    assert await request(reader, writer, "POST", "/register", json.dumps(body).encode()) == 201


Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def load(port: int, total: int, clients: int, exchange: Exchange) -> float:
    """Have some clients do an exchange a number of times between them; how many that makes a second."""
    left = iter(range(total))

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in left:
            await exchange(reader, writer)

    async with connections(port, clients) as opened:
        began = time.perf_counter()
        await asyncio.gather(*(client(*streams) for streams in opened))
        return total / (time.perf_counter() - began)


async def bare_hashes() -> float:
    """What bcrypt alone reaches on all cores."""
    total = 6 * WORKERS
    salt = bcrypt.gensalt(COST)
    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as threads:
        list(threads.map(lambda _: bcrypt.hashpw(b"correct horse battery staple", salt), range(total)))
    return total / (time.perf_counter() - began)


async def bare_pages(database: Path) -> float:
    """The same pages, read and written as JSON without any HTTP."""
    total = 1000
    async with SqliteUsers(database) as users:
        began = time.perf_counter()
        for _ in range(total):
            page = await users.page(limit=PAGE, order=Order.ASC, after=None, mailbox=None)
            orjson.dumps({"data": page.users})
        return total / (time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main())
