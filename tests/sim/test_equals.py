# Nodes that pull from nodes which all have the image, see equals.py.  `python -m tests.sim.equals` runs more of them.

import pytest

from tests.sim.equals import MOST_HEAT, Equals, Scene


@pytest.mark.parametrize("holders", [5, 20, 50])
def test_no_node_of_a_ring_of_equals_is_hot(holders: int) -> None:
    for seed in range(2):
        outcome = Equals(Scene(holders=holders, pulls=2 * holders, seed=seed)).run()
        assert outcome.hottest <= MOST_HEAT, outcome
        assert not outcome.failed, outcome


def test_busy_nodes_send_no_more_than_they_may_and_no_layer_comes_from_upstream() -> None:
    outcome = Equals(Scene(within=1.0, most=3)).run()
    assert outcome.streams == 3, outcome
    assert outcome.refused, outcome
    assert not outcome.failed, outcome
    free = Equals(Scene(within=1.0)).run()
    assert outcome.median <= free.median, "a few streams at full speed end sooner than many at a crawl"
