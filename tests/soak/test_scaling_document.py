"""What ``docs/scaling.md`` says is what the simulation prints, and that is near what was measured."""

from pathlib import Path

import pytest

from benchmarks.simulation.__main__ import compared, ends, needed
from benchmarks.simulation.measure import read
from benchmarks.simulation.model import saturated


def test_the_simulation_reproduces_what_was_measured_where_hashing_is_what_takes_time() -> None:
    conditions, costs, rates, _ = read()
    # For the others the page says how far it is from right, and why.
    compared_ones = [rate for rate in rates if rate.what == "registrations" and rate.cost >= 8]
    assert {rate.processes for rate in compared_ones} == {1, 2}
    for rate in compared_ones:
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


def test_the_figures_in_the_documentation_are_those_that_the_command_prints() -> None:
    text = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")
    for part in (compared, needed, ends):
        assert "\n```text\n" + "\n".join(part()) + "\n```\n" in text
