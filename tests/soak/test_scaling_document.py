"""``docs/scaling.md`` shows the output of the simulation, which is close to the measured values."""

from pathlib import Path

import pytest

from benchmarks.simulation.__main__ import compared, ends, needed
from benchmarks.simulation.measure import read
from benchmarks.simulation.model import saturated


def test_simulated_rates_are_close_to_measured_ones_where_hashing_dominates() -> None:
    conditions, costs, rates, _ = read()
    # The page states the deviations of the others, and the reasons.
    hashing = [rate for rate in rates if rate.what == "registrations" and rate.cost >= 8]
    assert {rate.processes for rate in hashing} == {1, 2}
    for rate in hashing:
        simulated = saturated(
            costs,
            what=rate.what,
            processes=rate.processes,
            cost=rate.cost,
            cores=conditions["cores"],
            connections=conditions["connections"],
            seconds=60 if rate.cost == 12 else 5,
        )
        assert simulated == pytest.approx(rate.rate, rel=0.1), rate


def test_the_tables_of_the_document_equal_the_output_of_the_simulation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")
    for part in (compared, needed, ends):
        assert "\n```text\n" + "\n".join(part()) + "\n```\n" in text
