# Nodes that pull one image together, see herd.py.  `python -m tests.sim.herd` runs larger herds.

from dataclasses import replace

import pytest

from spegel_consul.ring.dht.claim_reports import Why
from tests.sim.herd import Herd
from tests.sim.herd_scene import MIB, Outcome, Scene, mbit

ONE_COPY = Scene().image / Scene().line
SMALL_LAYERS = (30 * MIB,) * 9


def outcomes(scene: Scene, seeds: int = 3) -> list[Outcome]:
    return [Herd(replace(scene, seed=seed)).run(limit=120) for seed in range(seeds)]


def check(found: list[Outcome], *, factor: float, last: float, longest: float = 30.0) -> None:
    for outcome in found:
        assert not outcome.unfinished, outcome
        assert outcome.factor <= factor, outcome
        assert outcome.last_fast <= last, outcome
        assert outcome.longest <= longest, outcome


@pytest.mark.parametrize("nodes", [6, 50])
def test_a_herd_asks_upstream_once(nodes: int) -> None:
    check(outcomes(Scene(nodes=nodes)), factor=1.0, last=1.1 * ONE_COPY)


@pytest.mark.parametrize("deaths", [0.1, 0.3])
@pytest.mark.parametrize("nodes", [6, 50])
def test_deaths_cost_seconds_and_hardly_a_byte(nodes: int, deaths: float) -> None:
    check(outcomes(Scene(nodes=nodes, deaths=deaths), seeds=6), factor=1.2, last=2 * ONE_COPY)


@pytest.mark.parametrize("nodes", [6, 50])
def test_a_slow_claimer_does_not_hold_the_others(nodes: int) -> None:
    found = outcomes(replace(Scene(nodes=nodes), slow_claimer=mbit(100 / 10)), seeds=1)
    assert found[0].last_fast <= 1.5 * ONE_COPY


@pytest.mark.parametrize("nodes", [6, 50])
def test_a_slow_node_in_the_middle_holds_nobody(nodes: int) -> None:
    herd = Herd(Scene(nodes=nodes, slow_middle=mbit(50)))
    check([herd.run(limit=120)], factor=1.0, last=1.2 * ONE_COPY)


def test_narrow_links_are_not_divided_by_many() -> None:
    check(outcomes(Scene(nodes=6, link=mbit(250))), factor=1.0, last=1.2 * ONE_COPY)
    check(outcomes(Scene(nodes=50, link=mbit(250)), seeds=1), factor=1.0, last=2 * ONE_COPY)


def test_small_layers_that_each_hop_holds_back() -> None:
    check(outcomes(Scene(nodes=50, layers=SMALL_LAYERS), seeds=2), factor=1.0, last=2.5 * ONE_COPY)


def test_a_keeper_that_dies_leaves_the_forest_standing() -> None:
    check(outcomes(Scene(nodes=50, keeper_dies=True)), factor=1.0, last=1.1 * ONE_COPY)


@pytest.mark.parametrize("what", ["runtime", "machine"])
@pytest.mark.parametrize("hangs_at", [0.4, 3.0, 8.0])
@pytest.mark.parametrize("nodes", [6, 50])
def test_a_claimer_that_hangs_is_the_loss_of_one_node_at_most(nodes: int, what: str, hangs_at: float) -> None:
    found = outcomes(Scene(nodes=nodes, hung_claimer=what, hangs_at=hangs_at), seeds=2)
    check(found, factor=2.0, last=2 * ONE_COPY, longest=12.0)
    for each in found:
        assert [(lost, why) for _, lost, why in each.losses] in ([], [(0, Why.CUT)], [(0, Why.REFUSED)]), each
        assert not each.alone


@pytest.mark.parametrize("nodes", [6, 50])
def test_two_claimers_that_hang_one_after_the_other(nodes: int) -> None:
    found = outcomes(Scene(nodes=nodes, claimers_hang_at=(2.0, 12.0)), seeds=2)
    check(found, factor=2.05, last=3 * ONE_COPY, longest=12.0)


def test_a_keeper_that_hangs_and_is_the_claimer() -> None:
    found = outcomes(Scene(nodes=6, hung_claimer="machine", keeper_dies=True))
    check(found, factor=2.0, last=2 * ONE_COPY, longest=12.0)


def test_half_of_the_nodes_die() -> None:
    check(outcomes(Scene(nodes=50, deaths=0.5), seeds=4), factor=1.5, last=2 * ONE_COPY, longest=15.0)


ZONES = Scene(nodes=48, zones=3, trunk=mbit(1000))


def test_content_crosses_into_each_zone_once() -> None:
    """Two of the three zones take it from another one; without places it crosses thirty times."""
    found = outcomes(ZONES)
    check(found, factor=1.0, last=1.1 * ONE_COPY)
    assert max(each.crossed for each in found) <= 2.01
    assert max(each.hottest for each in found) <= 4
    (without,) = outcomes(replace(ZONES, zones=0, lines=3), seeds=1)
    assert without.crossed > 20


def test_content_enters_each_rack_once_and_makes_no_node_hot() -> None:
    """Without racks it passes between them 135 times."""
    (found,) = outcomes(replace(ZONES, nodes=150, racks=10), seeds=1)
    check([found], factor=1.0, last=1.1 * ONE_COPY)
    assert found.crossed <= 2.01
    assert found.left_racks <= 29.5
    assert found.hottest <= 3.1
    (silent,) = outcomes(replace(ZONES, nodes=150, racks=10, silent_racks=True), seeds=1)
    assert silent.left_racks > 100
    assert found.last <= 1.03 * silent.last


@pytest.mark.parametrize("racks", [2, 3])
def test_racks_do_not_divide_the_narrow_links_of_a_small_group(racks: int) -> None:
    found = outcomes(replace(ZONES, nodes=6, zones=1, racks=racks, link=mbit(250)))
    check(found, factor=1.0, last=1.25 * ONE_COPY)
    assert max(each.left_racks for each in found) <= racks - 0.5


def test_racks_of_held_layers_are_not_slower() -> None:
    scene = replace(ZONES, nodes=60, racks=4, layers=SMALL_LAYERS)
    found, silent = outcomes(scene, seeds=2), outcomes(replace(scene, silent_racks=True), seeds=2)
    assert max(each.last for each in found) <= max(each.last for each in silent)
    assert max(each.left_racks for each in found) <= 15


@pytest.mark.parametrize("deaths", [0.1, 0.3])
def test_deaths_cost_no_further_copy_between_zones(deaths: float) -> None:
    found = outcomes(replace(ZONES, deaths=deaths))
    check(found, factor=1.2, last=2 * ONE_COPY)
    assert max(each.crossed for each in found) <= ZONES.zones


def test_a_narrow_line_between_zones_is_crossed_once_too() -> None:
    (found,) = outcomes(replace(ZONES, zones=2, trunk=mbit(50)), seeds=1)
    assert not found.unfinished
    assert found.crossed <= 1.01
    assert found.last <= 1.1 * Scene().image / mbit(50)


def test_zones_that_nothing_crosses_take_a_copy_each_from_upstream() -> None:
    (found,) = outcomes(replace(ZONES, near_only=True, deaths=0.1), seeds=1)
    assert not found.unfinished
    assert found.crossed == 0
    assert found.factor <= 3.3


def test_a_slow_entry_does_not_hold_its_zone() -> None:
    (found,) = outcomes(replace(ZONES, slow_claimer=mbit(10)), seeds=1)
    assert found.last_fast <= 2 * ONE_COPY
    assert found.crossed <= ZONES.zones
