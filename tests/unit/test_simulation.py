"""The simulation of the benchmarks compared with results that can be calculated by hand."""

import pytest

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


@pytest.mark.parametrize(
    ("what", "processes", "cores", "rate", "seconds"),
    # Slow hashes use all cores; pages are bound by the event loops.
    [
        *(("registrations", processes, cores, 4 * cores, 60) for processes, cores in ((1, 1), (1, 2), (2, 2), (2, 4))),
        *(("pages", processes, 8, 5000 * processes, 3) for processes in (1, 2)),
    ],
)
def test_the_scarcest_resource_limits_the_rate(
    what: str, processes: int, cores: int, rate: float, seconds: float
) -> None:
    simulated = saturated(COSTS, what=what, processes=processes, cost=12, cores=cores, seconds=seconds)
    assert simulated == pytest.approx(rate, rel=0.03)


def test_random_arrivals_wait_as_in_queueing_theory() -> None:
    outcome = arriving(COSTS, rate=2, instances=1, cost=12, shards=1, seconds=20000)
    # M/D/1: the mean wait is rho / (2 (1 - rho)) service times; the median is a little lower.
    busy = 2 * 0.251
    mean = 0.251 * (1 + busy / (2 * (1 - busy)))
    assert 0.251 < outcome.p50 < mean < outcome.p99
    assert outcome.refused == 0


@pytest.mark.parametrize(("shards", "is_overloaded"), [(1, True), (8, False)])
def test_an_overloaded_database_is_detected(shards: int, is_overloaded: bool) -> None:
    outcome = arriving(COSTS, rate=100, instances=40, cost=12, shards=shards, seconds=60)
    assert (outcome.storing > 0.95) is is_overloaded
    assert (outcome.unstored > 1000) is is_overloaded
