"""The keeper's rules in any order of reports, true and false ones."""

import itertools
import sys
from collections import Counter
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spegel_consul.places import NOWHERE, Place
from spegel_consul.ring.dht import claims as rules
from spegel_consul.ring.dht.claim_forest import Forest
from spegel_consul.ring.dht.claim_reports import MAX_SOURCES, Decision, Report, What, Why
from spegel_consul.ring.dht.claims import Claims

MIB = 1 << 20
PEERS = [b"%d" % number for number in range(8)]

reports = st.builds(
    Report,
    lost=st.sampled_from([b"", b"", *PEERS]),
    why=st.sampled_from(Why),
    serves=st.booleans(),
    have=st.integers(0, 1 << 62),
    working=st.booleans(),
    behind=st.lists(st.sampled_from(PEERS), max_size=20).map(tuple),
    held=st.sampled_from([b"", *PEERS]),
    near_only=st.booleans(),
    left=st.sampled_from([0, 1, MIB, 1 << 40]),
    declines=st.booleans(),
)
places = st.sampled_from(
    [
        NOWHERE,
        Place("dc1"),
        Place("dc1", "a"),
        Place("dc1", "b"),
        Place("dc2", "a"),
        Place("dc1", "a", "r1"),
        Place("dc1", "a", "r2"),
        Place("", "", "r1"),
    ]
)
steps = st.lists(
    st.tuples(
        st.sampled_from(PEERS), st.sampled_from([b"g", b"h"]), reports, st.sampled_from([0, 0.1, 2, 7, 31]), places
    ),
    max_size=80,
)


def forests(claims: Claims) -> list[Forest]:
    return list(claims._groups.values())


def check(claims: Claims) -> None:
    """The invariants of the table."""
    held: Counter[bytes] = Counter()
    for forest in forests(claims):
        held.update(peer for peer, entry in forest.entries.items() if not entry.presumed)
        for entry in forest.entries.values():
            seen = set()
            at = entry
            while at.source is not None:
                assert at.peer not in seen, "a cycle"
                seen.add(at.peer)
                assert forest.entries[at.source.peer] is at.source
                assert at in at.source.children
                assert not at.claimer
                at = at.source
            assert (entry in forest.claimers) == entry.claimer
            assert all(child.source is entry for child in entry.children)
        serving = {entry for entry in forest.entries.values() if entry.serves}
        for buckets, expected in [
            (forest._all, serving),
            *((own, {each for each in serving if area in each.place.areas}) for area, own in forest._by_area.items()),
        ]:
            listed = [entry for bucket in buckets for entry in bucket]
            assert len(listed) == len(set(listed))
            assert set(listed) == expected
        assert set(forest._by_area) == {area for entry in serving for area in entry.place.areas}
    assert held == claims._held_by
    assert all(count <= rules.MAX_OF_PEER for count in held.values())


def passes(claims: Claims, group: bytes, decision: Decision, peer: bytes) -> bool:
    """Whether one of the sources leads back to ``peer``."""
    for source in decision.sources:
        at = claims._groups[group].entries.get(source)
        while at is not None:
            if at.peer == peer:
                return True
            at = at.source
    return False


@settings(max_examples=100, deadline=None)
@given(steps)
def test_nothing_makes_a_cycle_or_names_a_descendant(some: list[tuple[bytes, bytes, Report, float, Place]]) -> None:
    claims, now, at = Claims(), 0.0, dict.fromkeys(PEERS, NOWHERE)
    claims.place_of = at.__getitem__
    for peer, group, report, pause, place in some:
        now += pause
        at[peer] = place
        decision = claims.report(group, peer, report, now)
        check(claims)
        assert (decision.what is What.FOLLOW) == bool(decision.sources)
        assert len(decision.sources) == len(set(decision.sources)) <= MAX_SOURCES
        assert peer not in decision.sources
        assert not passes(claims, group, decision, peer)
        assert rules.CLAIMER_REPORTS_EVERY <= decision.again <= rules.LONGEST_PAUSE


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PEERS), st.integers(0, 64), st.sampled_from([0, 0.5, 2])), max_size=80))
def test_one_claimer_if_none_is_lost_or_slow(some: list[tuple[bytes, int, float]]) -> None:
    claims, now, have = Claims(), 0.0, Counter[bytes]()
    claimers: set[bytes] = set()
    for peer, more, pause in some:
        now += min(pause, max(0.0, rules.GRACE - 0.1 - now))
        have[peer] += more * MIB
        decision = claims.report(b"g", peer, Report(serves=True, working=True, have=have[peer]), now)
        if decision.what is What.CLAIM:
            claimers.add(peer)
        assert len(claimers) == 1
        assert decision.what is not What.ALONE


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PEERS), st.integers(0, 3), st.booleans(), st.sampled_from([0.1, 1, 2])), max_size=120
    )
)
def test_two_claimers_at_most_because_of_slowness(some: list[tuple[bytes, int, bool, float]]) -> None:
    claims, now, have, source = Claims(), 0.0, Counter[bytes](), dict[bytes, bytes]()
    takeovers: list[float] = []

    def report(peer: bytes, lost: bytes = b"") -> None:
        decision = claims.report(b"g", peer, Report(lost, Why.SLOW, True, have[peer], True), now)
        if decision.what is What.CLAIM and source.get(peer):
            takeovers.append(now)
        source[peer] = decision.sources[0] if decision.sources else b""

    for peer, more, complains, pause in some:
        for _ in range(max(1, int(pause / 0.5))):  # nobody is silent, because a claimer that hangs is replaced again
            now += min(pause, 0.5)
            for other in list(source):
                report(other)
        have[peer] += more * MIB
        report(peer, source.get(peer, b"") if complains else b"")
        for forest in forests(claims):
            assert len(forest.claimers) <= 2
    # a lease that ends makes a claimer too, but not within these pauses
    assert all(later - earlier >= rules.TAKEOVER_EVERY for earlier, later in itertools.pairwise(takeovers))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(PEERS), st.integers(0, 3), st.booleans(), st.sampled_from([0.1, 1, 2])), max_size=120
    )
)
def test_few_claimers_although_some_are_silent(some: list[tuple[bytes, int, bool, float]]) -> None:
    claims, now, have, source = Claims(), 0.0, Counter[bytes](), dict[bytes, bytes]()
    for peer, more, complains, pause in some:
        now += pause
        have[peer] += more * MIB
        lost = source.pop(peer, b"") if complains else b""
        decision = claims.report(b"g", peer, Report(lost, Why.SLOW, True, have[peer], True), now)
        if decision.sources:
            source[peer] = decision.sources[0]
        if now < rules.TAKEOVER_EVERY:
            assert all(len(forest.claimers) <= 1 + rules.MAX_TAKEOVERS for forest in forests(claims))


@settings(max_examples=100, deadline=None)
@given(st.lists(reports, max_size=20))
def test_a_liar_without_assigned_nodes_changes_nothing(lies: list[Report]) -> None:
    claims = Claims()
    honest = PEERS[:5]

    def states(now: float) -> list[Decision]:
        have = int(now) * 20 * MIB
        return [claims.report(b"g", peer, Report(serves=True, working=True, have=have), now) for peer in honest]

    for now in (0.0, 2.0, 4.0, 6.0, 8.0, 10.0):
        before = states(now)
    for lie in lies:
        told = replace(lie, serves=False, working=False, lost=b"" if lie.lost == honest[-1] else lie.lost)
        claims.report(b"g", b"liar", told, 11.0)
    assert states(12.0) == before


def test_the_choice_of_a_source_is_as_cheap_in_a_large_group() -> None:
    def lines(count: int) -> int:
        """Lines of the product that the next ten reports run in a group of ``count``, half of whose nodes lag."""
        claims = Claims()
        for number in range(count):
            claims.report(b"g", b"%d" % number, Report(serves=True, working=True), 0.0)
        forest = forests(claims)[0]
        for number, entry in enumerate(forest.entries.values()):
            entry.lagging_until = 100.0 if number % 2 else 0.0
        ran = 0

        def trace(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal ran
            ran += event == "line" and "spegel_consul" in frame.f_code.co_filename
            return trace

        sys.settrace(trace)
        try:
            for number in range(10):
                claims.report(b"g", b"new %d" % number, Report(serves=True, working=True), 1.0)
                claims.report(b"g", b"%d" % (count // 2 + number), Report(serves=True, working=True), 6.0)
        finally:
            sys.settrace(None)
        return ran

    small, large = lines(100), lines(1000)
    assert large < 2 * small
    assert large / 20 < 10_000


def test_a_thousand_nodes_hang_on_short_chains() -> None:
    claims = Claims()
    for number in range(1000):
        claims.report(b"g", b"%d" % number, Report(serves=True, working=True), 0.0)
    (forest,) = forests(claims)
    depths, followers = Counter[int](), Counter[int]()
    for entry in forest.entries.values():
        chain = forest.chain(entry, 0.0)
        assert chain is not None
        depths[len(chain) - 1] += 1
        followers[len(entry.children)] += 1
    assert max(depths) <= 20
    assert max(followers) <= 3


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_keeper_rebuilds_the_forest_in_any_order(order: int) -> None:
    old, new = Claims(), Claims()
    sources = {}
    for number in range(40):
        peer = b"%d" % number
        decision = old.report(b"g", peer, Report(serves=True, working=True), 0.0)
        sources[peer] = decision.sources[0] if decision.sources else peer
    for peer, held in list(sources.items())[::order]:
        decision = new.report(b"g", peer, Report(serves=True, working=True, held=held), 1.0)
        assert (decision.sources[0] if decision.sources else peer) == held
        check(new)
    assert [entry.peer for entry in forests(new)[0].claimers] == [b"0"]
