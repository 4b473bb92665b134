"""The service compared with alternatives: all measurements and ratios in one run on this machine.

    python -m benchmarks             # a table, and results/<date>.json and .svg
    python -m benchmarks --quick     # a short run; writes nothing

The rounds of all servers are interleaved, so that other load on the machine affects all of them equally. A ratio is the
median of the ratios of the rounds.
"""

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import bcrypt

from benchmarks import paced, wrk
from benchmarks.servers import FASTAPI, FLOOR, HEADERS, OURS, OWN_SERVER, Server, make_users, running
from usersvc.application.read_models import Order
from usersvc.web.cursor import Cursor

CORES = os.cpu_count() or 1
COST = 12
PAGE = "/users?limit=50"
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Plan:
    """The extent of a run."""

    rounds: int = 5
    seconds: float = 3
    flood_seconds: float = 12
    users: int = 100_000
    many_users: int = 1_000_000


QUICK = Plan(rounds=2, seconds=1, flood_seconds=4, users=2_000, many_users=20_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """The values of one measurement, by round."""

    what: str
    who: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """The lowest and the highest value."""
        return f"{_short(min(self.values))} to {_short(max(self.values))}"


@dataclass(frozen=True, slots=True)
class Target:
    """A value and its target."""

    what: str
    value: float
    sign: str
    bound: float

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.value >= self.bound if self.sign == ">=" else self.value <= self.bound


class Results:
    """All measurements so far."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self.targets: list[Target] = []

    def add(self, what: str, unit: str, values: Mapping[str, list[float]]) -> None:
        """Add the rounds of each server."""
        for who, rounds in values.items():
            self.figures.append(Figure(what, who, unit, rounds))
            print(f"  {what:44} {who:28} {_short(statistics.median(rounds)):>9} {unit}", flush=True)

    def compare(self, what: str, sign: str, bound: float, ours: list[float], theirs: list[float]) -> None:
        """Compare the ratio of two measurements with a target."""
        self.hold(what, sign, bound, statistics.median(one / other for one, other in zip(ours, theirs, strict=True)))

    def hold(self, what: str, sign: str, bound: float, value: float) -> None:
        """Compare a value with a target."""
        self.targets.append(Target(what, value, sign, bound))


def pages(plan: Plan, results: Results, database: Path) -> None:
    """The first page, from 8 connections."""
    names = (OURS, FLOOR, OWN_SERVER, FASTAPI)
    rates: dict[str, list[float]] = {name: [] for name in names}
    with servers(names, database) as started:
        for server in started.values():
            _get(server, PAGE, seconds=1)
        for _ in range(plan.rounds):
            for name, server in started.items():
                rates[name].append(_get(server, PAGE, seconds=plan.seconds).rate)
        results.add("livez", "/s", {OURS: [_get(started[OURS], "/livez", seconds=plan.seconds).rate]})
    results.add("50-row page, 8 connections", "/s", rates)
    results.compare("page / FastAPI's", ">=", 8.0, rates[OURS], rates[FASTAPI])
    results.compare("page / floor's", ">=", 1.0, rates[OURS], rates[FLOOR])
    results.compare("page / aiohttp's own server's", ">=", 0.8, rates[OURS], rates[OWN_SERVER])


def registrations(plan: Plan, results: Results, database: Path) -> None:
    """Registrations from more clients than there are cores, beside bcrypt alone."""
    rates: dict[str, list[float]] = {OURS: [], FASTAPI: [], "bcrypt alone": []}
    with servers((OURS, FASTAPI), database) as started:
        for _ in range(plan.rounds):
            for name, server in started.items():
                rates[name].append(_register(server, plan.flood_seconds))
            rates["bcrypt alone"].append(_hashes(plan.flood_seconds / 2))
    results.add(f"registrations, cost {COST}, saturated", "/s", rates)
    results.compare("registrations / bcrypt alone", ">=", 0.97, rates[OURS], rates["bcrypt alone"])


def pages_under_flood(plan: Plan, results: Results, database: Path) -> None:
    """The latency of a page during a flood of registrations."""
    found: dict[str, dict[str, list[float]]] = {}
    with servers((OURS, FASTAPI), database) as started:
        for _ in range(max(1, plan.rounds // 2)):
            for name, server in started.items():
                idle = _paced(server, plan.flood_seconds / 2)
                with ThreadPoolExecutor(1) as thread:
                    flood = thread.submit(_register, server, plan.flood_seconds)
                    time.sleep(1)  # until the hashing threads are busy
                    busy = _paced(server, plan.flood_seconds - 2)
                    flood.result()
                for what, value in (
                    ("idle p50", idle.p50_ms), ("flood p50", busy.p50_ms), ("flood p99", busy.p99_ms)
                ):  # fmt: skip
                    found.setdefault(what, {}).setdefault(name, []).append(value)
    for what, values in found.items():
        results.add(f"50-row page, {what}", "ms", values)
    added = [busy - idle for busy, idle in zip(found["flood p50"][OURS], found["idle p50"][OURS], strict=True)]
    results.hold("page p50 under flood, over idle, ms", "<=", 0.5, statistics.median(added))
    results.hold("page p99 under flood, ms", "<=", 5.0, statistics.median(found["flood p99"][OURS]))


def many_users(plan: Plan, results: Results, database: Path) -> None:
    """The time of a page or a mailbox must not depend on its position."""
    last = plan.many_users
    paths = {
        "first page": PAGE,
        "last page": f"{PAGE}&cursor={Cursor(Order.ASC, last - 50).encode()}",
        "mailbox of the first": "/users?email=user1%40example.com",
        "mailbox of the last": f"/users?email=user{last}%40example.com",
    }
    times: dict[str, list[float]] = {what: [] for what in paths}
    with servers([OURS], database) as started:
        for what in [*paths] * (2 * plan.rounds):
            times[what].append(1000 / _get(started[OURS], paths[what], seconds=plan.seconds / 2, connections=1).rate)
        for what, values in times.items():
            results.add(f"{last:,} users: {what}", "ms", {OURS: values})
    results.compare("last page / first page, time", "<=", 1.1, times["last page"], times["first page"])
    results.compare(
        "last mailbox / first mailbox, time", "<=", 1.1, times["mailbox of the last"], times["mailbox of the first"]
    )


def export(plan: Plan, results: Results, database: Path) -> None:
    """An NDJSON export of all users, while other clients read pages."""
    rates, growths, waits = [], [], []
    with servers([OURS], database) as started:
        server = started[OURS]
        _get(server, PAGE, seconds=1)
        for _ in range(max(1, plan.rounds // 2)):
            rows, seconds, growth = _exported(server)
            if rows != plan.many_users:
                sys.exit(f"{rows} rows came instead of {plan.many_users}")
            rates.append(rows / seconds)
            growths.append(growth)
            with ThreadPoolExecutor(1) as thread:
                stop_after = thread.submit(_exported, server)
                waits.append(_paced(server, max(1.0, seconds * 0.8)).p99_ms)
                stop_after.result()
    results.add(f"NDJSON export of {plan.many_users:,}, rows", "/s", {OURS: rates})
    results.add("resident memory growing meanwhile", "MiB", {OURS: growths})
    results.add("50-row page meanwhile, p99", "ms", {OURS: waits})
    results.hold("export, rows a second", ">=", 150_000, statistics.median(rates))
    results.hold("export, memory growing by, MiB", "<=", 16, max(growths))
    results.hold("page p99 during an export, ms", "<=", 10, statistics.median(waits))


def starts(plan: Plan, results: Results, folder: Path) -> None:
    """The time from process start to the first response, and the resident memory."""
    names = (OURS, FASTAPI)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    resident: dict[str, list[float]] = {name: [] for name in names}
    database = folder / "start.db"
    make_users(database, 100)
    for _ in range(plan.rounds):
        for name in names:
            with running(name, database) as server:
                seconds[name].append(server.first_response)
                resident[name].append(server.resident())
    results.add("start to first 200", "s", seconds)
    results.add("resident memory, idle", "MiB", resident)
    results.compare("start / FastAPI's", "<=", 0.6, seconds[OURS], seconds[FASTAPI])
    results.compare("idle memory / FastAPI's", "<=", 0.75, resident[OURS], resident[FASTAPI])


@contextmanager
def servers(names: "tuple[str, ...] | list[str]", database: Path) -> Iterator[dict[str, Server]]:
    """Start several on one file."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(running(name, database, cost=COST)) for name in names}


def _get(server: Server, path: str, *, seconds: float, connections: int = 8) -> wrk.Report:
    report = wrk.get(f"{server.url}{path}", seconds=seconds, connections=connections, headers=HEADERS)
    if report.errors:
        sys.exit(f"{server.name}: {report.errors} of {report.requests} requests failed")
    return report


def _register(server: Server, seconds: float) -> float:
    report = wrk.register(server.url, seconds=seconds, connections=16)
    server.rest()
    if report.errors:
        sys.exit(f"{server.name} refused {report.errors} of {report.requests} registrations")
    return report.rate


def _hashes(seconds: float) -> float:
    """The rate of bcrypt alone on all cores, in hashes a second."""
    salt = bcrypt.gensalt(COST)

    def hash_until(end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            bcrypt.hashpw(b"correct horse battery staple", salt)
            done += 1
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        done = sum(threads.map(hash_until, [began + seconds] * CORES))
    return done / (time.perf_counter() - began)


def _paced(server: Server, seconds: float) -> paced.Report:
    return paced.measure(f"{server.url}{PAGE}", seconds=seconds, headers=HEADERS)


def _exported(server: Server) -> tuple[int, float, float]:
    """The number of rows, the seconds, and the maximum growth of memory, in MiB."""
    return paced.export(f"{server.url}/users", headers=HEADERS, resident=server.resident)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _conditions() -> dict[str, str | int]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        "unknown",
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": platform.system(),
        "processor": model,
        "cores": CORES,
        "bcrypt_cost": COST,
    }


def main() -> None:
    """Run all benchmarks, print the results and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds and few users; writes nothing")
    parser.add_argument("--only", metavar="PART", help="one part: pages, registrations, flood, many, export or starts")
    chosen = parser.parse_args()
    wrk.need_wrk()
    plan, results = QUICK if chosen.quick else Plan(), Results()
    conditions = _conditions()
    print(", ".join(f"{name} {value}" for name, value in conditions.items()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database, large = folder / "users.db", folder / "many.db"
        make_users(database, plan.users)
        parts: dict[str, Callable[[], None]] = {
            "starts": lambda: starts(plan, results, folder),
            "pages": lambda: pages(plan, results, database),
            "many": lambda: many_users(plan, results, large),
            "export": lambda: export(plan, results, large),
            "registrations": lambda: registrations(plan, results, database),
            "flood": lambda: pages_under_flood(plan, results, database),
        }
        if chosen.only not in {None, *parts}:
            parser.error(f"there are the parts {', '.join(parts)}")
        wanted = [chosen.only] if chosen.only else [*parts]
        if {"many", "export"} & {*wanted}:
            make_users(large, plan.many_users)
        for part in wanted:
            parts[part]()
    print(f"\n{'target':44} {'is':>10} {'should be':>14}")
    for target in results.targets:
        missed = "" if target.met else "   MISSED"
        print(f"{target.what:44} {_short(target.value):>10} {target.sign:>4} {_short(target.bound):>9}{missed}")
    if not (chosen.quick or chosen.only):
        keep(conditions, results)


def keep(conditions: Mapping[str, str | int], results: Results) -> None:
    """Write the results as JSON and as plots."""
    # Imported here, since the measurements do not need matplotlib.
    from benchmarks.plots import draw  # noqa: PLC0415

    RESULTS.mkdir(exist_ok=True)
    document = {
        "conditions": conditions,
        "figures": [asdict(figure) | {"median": figure.median} for figure in results.figures],
        "targets": [asdict(target) | {"met": target.met} for target in results.targets],
    }
    stem = RESULTS / str(conditions["date"])
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(document, stem)
    print(f"kept in {RESULTS.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
