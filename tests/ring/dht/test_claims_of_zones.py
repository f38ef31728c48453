"""Claims of a group whose nodes are in several zones. The first letter of a name is the zone."""

from __future__ import annotations

from collections import Counter

import pytest

from spegel_consul.places import NOWHERE, Place
from spegel_consul.ring.dht.claim_forest import ENTRY_EVERY, MOVE_EVERY, STAYS_FOR
from spegel_consul.ring.dht.claim_reports import Report, Why
from spegel_consul.ring.dht.claims import MAX_OF_GROUP, Claims

from .test_claims import GROUP, MIB, Keeper


class Zones(Keeper):
    def __init__(self) -> None:
        super().__init__()
        self.places: dict[bytes, Place] = {}
        self.claims.place_of = self.place_of

    def place_of(self, peer: bytes) -> Place:
        zone = peer[:1].decode()
        rack = peer.decode().split("-")[0] if b"-" in peer else ""  # a3-1 is in the third rack of the zone a
        return self.places.get(peer, NOWHERE if zone == "?" else Place("dc1", zone, rack))


@pytest.fixture
def keeper() -> Zones:
    return Zones()


def test_the_first_of_a_zone_follows_across_and_the_others_follow_it(keeper: Zones) -> None:
    names = ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]
    sources = {name: keeper.report(name) for name in names}
    crossing = [name for name, source in sources.items() if source != "claim" and source[0] != name[0]]
    assert crossing == ["b1", "c1"]
    assert {name: keeper.report(name) for name in names} == sources, "and all of them stay"


def test_chains_branch_within_the_zone_before_they_leave_it(keeper: Zones) -> None:
    keeper.report("a1")
    crossing = [name for name in (f"b{number}" for number in range(40)) if keeper.report(name)[0] != "b"]
    assert crossing == ["b0"]


def test_a_source_of_the_zone_is_found_among_hundreds_of_others(keeper: Zones) -> None:
    for number in range(400):
        keeper.report(f"a{number}")
    keeper.report("b1")
    for number in range(400, 500):
        keeper.report(f"a{number}")
    assert keeper.report("b2") == "b1"


def test_a_node_that_does_not_say_where_it_is_follows_anybody(keeper: Zones) -> None:
    assert [keeper.report(name) for name in ("?1", "a1", "?2", "b1")] == ["claim", "?1", "a1", "?2"]


def test_nodes_that_never_cross_claim_once_in_each_zone(keeper: Zones) -> None:
    near = {"near_only": True}
    assert [keeper.report(name, **near) for name in ("a1", "b1", "a2", "b2")] == ["claim", "claim", "a1", "b1"]


def test_two_claimers_that_never_cross_do_not_yield_to_each_other(keeper: Zones) -> None:
    near = {"near_only": True}
    for second in range(0, 60, 2):
        keeper.now = second
        assert keeper.report("a1", have=second * 100 * MIB, **near) == "claim"
        assert keeper.report("b1", have=second * 10 * MIB, **near) == "claim"


def test_a_slow_claimer_is_replaced_in_its_zone_though_another_zone_has_a_fast_one(keeper: Zones) -> None:
    near, takes_over = {"near_only": True}, ""
    for second in range(0, 30, 2):
        keeper.now = second
        keeper.report("a1", have=second * 100 * MIB, **near)
        keeper.report("b1", have=second * 100 << 10, **near)
        takes_over = keeper.report("b2", have=second * 100 << 10, **near)
        if takes_over == "claim":
            break
    assert takes_over == "claim"


def test_two_that_crossed_at_once_become_one(keeper: Zones) -> None:
    """The first could not serve yet when the second came."""
    keeper.report("a1")
    assert keeper.report("b1", serves=False, working=False) == "a1"
    assert keeper.report("b2", serves=False, working=False) == "a1"
    keeper.now = MOVE_EVERY + 1
    keeper.report("a1", have=9 * MIB)
    assert keeper.report("b2") == "a1"
    assert [keeper.report(name) for name in ("b1", "b2")] == ["b2", "a1"]


def test_of_two_that_crossed_the_one_with_less_moves(keeper: Zones) -> None:
    keeper.report("a1")
    for name in ("b1", "b2"):
        keeper.report(name, serves=False, working=False)
    keeper.now = MOVE_EVERY + 1
    keeper.report("a1", have=900 * MIB)
    keeper.report("b2", have=1 * MIB)
    assert keeper.report("b1", have=500 * MIB) == "a1"
    assert keeper.report("b2", have=1 * MIB) == "b1"


def test_when_the_entry_of_a_zone_dies_one_of_its_followers_crosses(keeper: Zones) -> None:
    for name in ("a1", "b1", "b2", "b3"):
        keeper.report(name)
    keeper.now = 3
    assert keeper.lost("b2", "b1", Why.UNREACHABLE) == "a1"
    assert keeper.report("b3") == "b2"


def run(keeper: Zones, seconds: int, **rates: float) -> dict[str, str]:
    """Decisions after reports of ``rates`` in MiB/s."""
    found = {}
    for _ in range(0, seconds, 2):
        keeper.now += 2
        for name, rate in rates.items():
            keeper.held[name.encode()] = have = keeper.held.get(name.encode(), 0) + int(2 * rate * MIB)
            found[name] = keeper.report(name, have)
    return found


def test_an_entry_with_a_bad_line_is_replaced_by_one_of_its_followers(keeper: Zones) -> None:
    for name in ("a1", "b1", "b2", "b3"):
        keeper.report(name)
    assert run(keeper, 40, a1=100, b1=1, b2=1, b3=1)["b2"] == "a1"
    assert keeper.report("b1", have=90 * MIB) in ("b2", "b3"), "and follows in its zone itself"


def test_a_line_between_zones_that_is_only_slower_than_the_upstream_is_crossed_once(keeper: Zones) -> None:
    for name in ("a1", "b1", "b2", "b3"):
        keeper.report(name)
    found = run(keeper, 4 * int(ENTRY_EVERY), a1=100, b1=6, b2=6, b3=6)
    assert found == {"a1": "claim", "b1": "a1", "b2": "b1", "b3": "b2"}


def test_a_new_keeper_takes_over_what_crosses(keeper: Zones) -> None:
    assert keeper.report("b2", held=b"b1") == "b1"
    assert keeper.report("b1", held=b"a1") == "a1"
    assert keeper.report("a1", held=b"a1") == "claim"
    assert [keeper.report(name) for name in ("b1", "b2")] == ["a1", "b1"]


def test_content_enters_each_rack_once(keeper: Zones) -> None:
    names = [f"{zone}{rack}-{number}" for number in range(9) for rack in range(4) for zone in "ab"]
    sources = {name: keeper.report(name) for name in names}
    into_racks = [name for name, source in sources.items() if source.split("-")[0] != name.split("-")[0]]
    assert into_racks == names[:8], "the first of each rack"
    assert [name for name in into_racks if sources[name][0] not in (name[0], "c")] == ["b0-0"]
    fanout = Counter(sources.values())
    assert max(fanout.values()) <= 3
    keeper.now = MOVE_EVERY + 1
    assert {name: keeper.report(name) for name in names} == sources, "and all of them stay"


def test_a_rack_is_found_among_hundreds_of_nodes_of_its_zone(keeper: Zones) -> None:
    keeper.report("a1-0")
    keeper.report("a2-0")
    for number in range(1, 400):
        keeper.report(f"a{3 + number % 5}-{number}")
    assert keeper.report("a2-1") == "a2-0"


def test_a_source_of_the_rack_that_is_not_good_is_no_reason_to_stay(keeper: Zones) -> None:
    for name in ("a1-0", "a2-0", *(f"a{rack}-0" for rack in range(3, 8))):
        keeper.report(name)
    assert keeper.report("a2-1", serves=False, working=False) == "a2-0"
    keeper.now = 3
    keeper.report("a1-0", have=9 * MIB, behind=(b"a2-0",))  # the link of a2-0 is bad
    assert keeper.report("a2-2") in {"a1-0", *(f"a{rack}-0" for rack in range(3, 8))}


def test_a_group_as_long_as_a_chain_passes_through_one_rack_after_the_other(keeper: Zones) -> None:
    """No source has two followers, so no link is divided."""
    names = ["a1-0", "a2-0", "a1-1", "a2-1", "a1-2"]
    for name in names:
        keeper.report(name)
    for _ in range(2):
        found = {name: keeper.report(name) for name in names}
    assert found == {"a1-0": "claim", "a1-1": "a1-0", "a1-2": "a1-1", "a2-0": "a1-2", "a2-1": "a2-0"}


@pytest.mark.parametrize("trouble", ["silent", "behind"])
def test_a_follower_that_left_a_bad_source_does_not_come_back_for_a_minute(keeper: Zones, trouble: str) -> None:
    """Making room would put it behind the same source as soon as that one seems well again."""
    assert [keeper.report(name) for name in ("a1-0", "a1-1", "a2-0")] == ["claim", "a1-0", "a1-1"]
    source, moves = "a1-1", []
    for second in range(1, 121):
        keeper.now, have = second, second * 10 * MIB
        bad = second % 12 < 6
        keeper.report("a1-0", have, behind=(b"a1-1",) if bad and trouble == "behind" else ())
        if not (bad and trouble == "silent"):
            keeper.report("a1-1", have)
        if (now := keeper.report("a2-0", have)) != source:
            source, moves = now, [*moves, second]
    assert moves[0] < 20, "it leaves the bad source"
    assert all(later - earlier >= STAYS_FOR for earlier, later in zip(moves[::2], moves[1::2], strict=False))
    assert len(moves) <= 4


def test_the_datacenter_comes_before_another_one(keeper: Zones) -> None:
    keeper.places |= {b"x1": Place("dc2", "x"), b"y1": Place("dc1", "y"), b"z1": Place("dc1", "z")}
    assert keeper.report("x1") == "claim"
    assert keeper.report("y1") == "x1"
    assert keeper.report("x2", serves=False, working=False) in ("x1", "y1")
    assert keeper.report("z1") == "y1"
    for number in range(100):
        keeper.places[b"x%d" % (number + 3)] = Place("dc2", "x")
        keeper.report(f"x{number + 3}")
    keeper.places[b"w1"] = Place("dc1", "w")
    assert keeper.report("w1") in ("y1", "z1")


def test_a_node_that_moves_is_a_source_where_it_is_now(keeper: Zones) -> None:
    keeper.report("a1")
    assert keeper.report("b1") == "a1"
    keeper.places[b"b1"] = Place("dc1", "c")
    keeper.report("b1")
    assert keeper.report("c1") == "b1"


def test_places_without_end_cost_no_memory() -> None:
    """A peer may tell a new place before each report."""
    claims, at = Claims(), [NOWHERE]
    claims.place_of = lambda peer: at[0]
    for number in range(1000):
        at[0] = Place("dc", f"zone{number}")
        claims.report(GROUP, b"peer", Report(serves=True, working=True), number / 100)
    (group,) = claims._groups.values()
    assert len(group._by_area) == 2, "its zone and its datacenter"
    assert len(group._entered) <= 256 < MAX_OF_GROUP
