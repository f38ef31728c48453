"""What counts as a flood."""

from __future__ import annotations

import json

import pytest

from tests.faults.crowds import came_about
from tests.faults.flood import Flood


@pytest.mark.parametrize(
    ("counts", "rate", "is_flood"),
    [
        ({"404": 150, "unanswered": 2240, "ECONNRESET": 810}, 530, True),  # on a busy machine
        ({"404": 900, "429": 900, "503": 900, "closed": 500}, 530, True),
        ({"404": 3000}, 200, False),  # too few
        ({"ECONNREFUSED": 3200}, 533, False),  # nobody was there
        ({"200": 3000}, 533, False),
        ({}, 533, False),
    ],
)
def test_a_flood_is_as_many_as_it_says_and_answered(counts: dict[str, int], rate: int, is_flood: bool) -> None:
    flood = Flood("127.0.0.1", 1, 533.0, 6.0, "miss", [])
    flood.counts.update(counts)
    flood._number = rate * 6
    problem = came_about(json.dumps(flood.summary()), 533.0)
    assert (problem == "") is is_flood, problem
