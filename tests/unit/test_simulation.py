"""The simulation of the benchmarks against what can be reckoned by hand."""

import pytest

from benchmarks.simulation.engine import Pass, Process, Resource, Simulation, Take, use
from benchmarks.simulation.model import Costs, arriving, saturated

COSTS = Costs(
    hash={12: 0.25, 4: 0.001},
    register_loop=0.001,
    page_loop=0.0002,
    page_store=0.00005,
    client_page=0.00001,
    add_cpu=0.0001,
    add_disk=0.001,
    outbox_cpu=0.0001,
    outbox_disk=0.001,
    commit=0.02,
)


def test_who_finds_no_place_waits_for_one_and_the_urgent_go_first() -> None:
    simulation, seen = Simulation(), list[tuple[str, float]]()
    desk = Resource(simulation, 1)

    def customer(name: str, urgency: int) -> Process:
        yield from use(desk, 2, urgency)
        seen.append((name, simulation.now))

    for name, urgency in (("first", 1), ("patient", 1), ("urgent", 0)):
        simulation.start(customer(name, urgency))
    simulation.run(10)
    assert seen == [("first", 2), ("urgent", 4), ("patient", 6)]
    assert (desk.free, desk.busy, simulation.now) == (1, 6, 10)


def test_nothing_happens_after_the_end() -> None:
    simulation, seen = Simulation(), list[float]()

    def clock() -> Process:
        while True:
            yield Pass(1)
            seen.append(simulation.now)

    simulation.start(clock())
    simulation.run(2.5)
    assert seen == [1, 2]
    simulation.run(3)
    assert seen == [1, 2, 3]


def test_a_place_that_is_free_is_taken_at_once() -> None:
    simulation = Simulation()
    two = Resource(simulation, 2)

    def guest() -> Process:
        yield Take(two)

    for _ in range(3):
        simulation.start(guest())
    simulation.run(0)
    assert (two.free, two.waiting) == (0, 1)


@pytest.mark.parametrize(("processes", "cores", "rate"), [(1, 1, 4), (1, 2, 8), (2, 2, 8), (2, 4, 16)])
def test_slow_hashes_are_done_by_every_core(processes: int, cores: int, rate: float) -> None:
    assert saturated(COSTS, what="registrations", processes=processes, cost=12, cores=cores) == pytest.approx(
        rate, rel=0.03
    )


def test_quick_hashes_are_bound_by_the_one_writer() -> None:
    # Of three transactions for each registration, one adds, one answers, and one takes some from the outbox.
    one = saturated(COSTS, what="registrations", processes=1, cost=4, cores=8)
    two = saturated(COSTS, what="registrations", processes=2, cost=4, cores=8)
    assert 1 / (3 * 0.0011) < one < 1 / 0.0011
    # Processes that poll for a file leave it free at times.
    assert two <= one * 1.05


def test_pages_are_bound_by_the_thread_that_python_runs_in() -> None:
    one = saturated(COSTS, what="pages", processes=1, cost=12, cores=8, seconds=3)
    two = saturated(COSTS, what="pages", processes=2, cost=12, cores=8, seconds=3)
    assert one == pytest.approx(5000, rel=0.02)
    assert two == pytest.approx(10000, rel=0.02)


def test_who_comes_at_random_waits_as_queueing_theory_says() -> None:
    outcome = arriving(COSTS, rate=2, instances=1, cost=12, shards=1, seconds=20000)
    # M/D/1: the mean wait is ro / (2 (1 - ro)) times the service; the median of the whole is a little under the mean.
    busy = 2 * 0.251
    mean = 0.251 * (1 + busy / (2 * (1 - busy)))
    assert 0.251 < outcome.p50 < mean < outcome.p99
    assert outcome.refused == 0


def test_a_store_that_cannot_keep_up_is_seen() -> None:
    outcome = arriving(COSTS, rate=100, instances=40, cost=12, shards=1, seconds=60)
    assert outcome.storing > 0.95
    assert outcome.unstored > 1000
    enough = arriving(COSTS, rate=100, instances=40, cost=12, shards=8, seconds=60)
    assert enough.unstored < 10


def test_more_than_instances_can_hash_is_refused() -> None:
    outcome = arriving(COSTS, rate=8, instances=1, cost=12, shards=1, seconds=600)
    assert outcome.refused == pytest.approx(0.5, abs=0.05)
