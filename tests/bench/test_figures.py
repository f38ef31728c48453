"""Ratios, floors and their verdicts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import floors as floors_
from bench import report, workload
from bench.__main__ import exit_status
from bench.figures import Results, Spread
from bench.floors import Floor, Verdict
from bench.programs import GO, SPEGEL
from bench.rounds import Sample
from bench.workload import OWN, Workload

LOAD = Workload(OWN, "100 MiB", 4)


def sample(server: str, number: int, gib: float) -> Sample:
    """A second in which ``gib`` GiB came."""
    return Sample(OWN, LOAD.label, server, number, True, 1.0, 7, int(gib * (1 << 30)), 1.0, 2.0, 0, 0.5, 0.1, 0.0)


def test_ratio_is_taken_within_each_round() -> None:
    # the machine was half as fast in the second round, for both
    results = Results([sample(SPEGEL, 0, 4), sample(GO, 0, 8), sample(SPEGEL, 1, 2), sample(GO, 1, 4)])
    assert results.ratio(OWN, LOAD.label, SPEGEL, GO) == Spread(0.5, 0.5, 0.5)


def test_ratio_without_base_is_unknown() -> None:
    assert Results([sample(SPEGEL, 0, 4)]).ratio(OWN, LOAD.label, SPEGEL, GO) is None


def test_rounds_that_lack_one_of_the_two_do_not_count() -> None:
    results = Results([sample(SPEGEL, 0, 4), sample(SPEGEL, 1, 6), sample(GO, 1, 4)])
    assert results.ratio(OWN, LOAD.label, SPEGEL, GO) == Spread(1.5, 1.5, 1.5)


def test_cost_is_per_gib_or_per_answer() -> None:
    bulk = sample(GO, 0, 2)
    assert bulk.cost == pytest.approx(0.25)
    assert replace(bulk, bulk=False, requests=1000).cost == pytest.approx(500)
    assert replace(bulk, bytes=0).cost == float("inf")


@pytest.mark.parametrize(
    ("median", "at_most", "verdict"),
    [
        (1.0, False, Verdict.GOAL),
        (0.95, False, Verdict.HELD),
        (0.89, False, Verdict.BROKEN),
        (0.9, False, Verdict.HELD),
        (1.1, True, Verdict.BROKEN),
        (0.9, True, Verdict.GOAL),
    ],
)
def test_verdict(median: float, at_most: bool, verdict: Verdict) -> None:
    limit = 1.0 if at_most else 0.9
    assert Floor("x", Spread.of([median]), 1.0, limit, at_most).verdict is verdict


def test_last_line_names_what_is_broken_and_counts_what_is_unknown() -> None:
    broken = Floor("own blobs: GET", Spread.of([0.3]), 1.0, 0.9, unit="x go")
    unknown = Floor("cold", None, 1.0, 0.9)
    assert report.last_line([broken, unknown]) == (
        "1 of 2 floors broken; 1 not measured: own blobs: GET 0.30 x go (limit 0.9)"
    )
    held = Floor("y", Spread.of([1.0]), 1.0, 0.9)
    assert report.last_line([unknown, held]) == "all 1 floors held; 1 not measured"
    assert report.last_line([unknown]) == "none of 1 floors was measured"
    assert [exit_status(found) for found in ([unknown, held], [broken, held], [unknown], [])] == [0, 1, 2, 2]


def test_wrong_answers_break_a_floor() -> None:
    results = Results([replace(sample(SPEGEL, 0, 4), errors=3)])
    verdicts = {floor.name: floor.verdict for floor in floors_.floors(workload.quick(), results)}
    assert verdicts["answers that were wrong"] is Verdict.BROKEN


@pytest.mark.parametrize("plan", [workload.quick(), workload.full(3)])
def test_names_of_floors_are_unique(plan: workload.Plan) -> None:
    found = [(floor.name, floor.unit) for floor in floors_.floors(plan, Results())]
    assert len(found) == len(set(found))
