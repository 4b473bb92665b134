"""Prints measured and simulated rates, and what more registrations would need.

python -m benchmarks.simulation
"""

from collections.abc import Iterator, Mapping
from math import ceil

from benchmarks.simulation.measure import read
from benchmarks.simulation.model import Costs, arriving, saturated

COST = 12
TARGETS = (100, 10_000, 1_000_000)
"""Registrations a minute."""
BUSY = 0.7
"""The share of its core that an instance hashes with: the target of the autoscaler in deploy/kubernetes."""
STORED = 0.5
"""The share of its time that a database may be busy with adding users, which leaves the rest for other work."""
POOL, LISTENERS = 5, 1
"""Connections of each instance to the database: the pool, and one for notifications."""
KEY_BYTES = 250
"""Of an idempotency key with its three indexes, calculated."""
DAY, GB = 24 * 3600, 1e9


def compared() -> Iterator[str]:
    """Rates of one host, measured and simulated."""
    conditions, costs, rates, _ = read()
    yield f"One host of {conditions['cores']} cores, measured {conditions['date']}; a second, saturated:"
    yield ""
    yield f"{'':24}{'processes':>10}{'measured':>10}{'simulated':>11}{'':>8}"
    for rate in rates:
        simulated = saturated(
            costs,
            what=rate.what,
            processes=rate.processes,
            cost=rate.cost,
            cores=conditions["cores"],
            connections=conditions["connections"],
            seconds=60 if rate.cost == COST and rate.what == "registrations" else 5,
        )
        what = rate.what if rate.what == "pages" else f"{rate.what}, cost {rate.cost}"
        yield (f"{what:24}{rate.processes:>10}{rate.rate:>10,.1f}{simulated:>11,.1f}{simulated / rate.rate - 1:>+8.0%}")


def needed() -> Iterator[str]:
    """The resources for the target rates."""
    _, costs, _, size = read()
    columns = [_needs(costs, size, target / 60) for target in TARGETS]
    yield f"Registrations a minute, bcrypt cost {COST}, {costs.hash[COST]:.3f} s a hash:"
    yield ""
    yield f"{'':42}" + "".join(f"{target:>14,}" for target in TARGETS)
    for row in columns[0]:
        yield f"{row:42}" + "".join(f"{column[row]:>14}" for column in columns)


def _needs(costs: Costs, size: Mapping[str, float], rate: float) -> dict[str, str]:
    cores = rate * costs.hash[COST]
    # Two, so that one can be replaced.
    instances = max(2, ceil(cores / BUSY))
    shards = max(1, ceil(rate * costs.commit / STORED))
    outcome = arriving(costs, rate=rate, instances=instances, cost=COST, shards=shards, seconds=max(10, 2000 / rate))
    sqlite = rate * (costs.add_cpu + costs.add_disk + 2 * (costs.outbox_cpu + costs.outbox_disk))
    return {
        "a second": f"{rate:,.1f}",
        "cores for hashing, fully used": f"{cores:,.1f}",
        f"instances of one core, {BUSY:.0%} busy": f"{instances:,}",
        "registration, p50, simulated": f"{outcome.p50:.2f} s",
        "registration, p99, simulated": f"{outcome.p99:.2f} s",
        "refused, simulated": f"{outcome.refused:.1%}",
        "SQLite's single writer, busy": f"{sqlite:,.1%}",
        "one PostgreSQL, adding users, busy": f"{rate * costs.commit:,.1%}",
        f"databases, each busy at most {STORED:.0%}": f"{shards:,}",
        f"connections, a pool of {POOL} and {LISTENERS} each": f"{(POOL + LISTENERS) * instances:,}",
        "mails a second": f"{rate:,.1f}",
        "dead rows of the outbox a day, millions": f"{2 * rate * DAY / 1e6:,.1f}",
        "users, GB a day in PostgreSQL": f"{rate * DAY * size['postgresql'] / GB:,.2f}",
        "keys of 24 hours, GB": f"{rate * DAY * KEY_BYTES / GB:,.2f}",
    }


def ends() -> Iterator[str]:
    """The limit of each resource."""
    _, costs, _, _ = read()
    sqlite = costs.add_cpu + costs.add_disk + 2 * (costs.outbox_cpu + costs.outbox_disk)
    yield "Registrations a minute that one of each can handle:"
    yield ""
    yield f"{'a core for hashing':42}{60 / costs.hash[COST]:>14,.0f}"
    yield f"{'SQLite, with this disk':42}{60 / sqlite:>14,.0f}"
    yield f"{'PostgreSQL, one by one, with this disk':42}{60 / costs.commit:>14,.0f}"
    yield f"{'PostgreSQL, one by one, 5 ms a commit':42}{60 / 0.005:>14,.0f}"


def report() -> str:
    """All tables."""
    return "\n".join([*compared(), "", *needed(), "", *ends()])


if __name__ == "__main__":
    print(report())
