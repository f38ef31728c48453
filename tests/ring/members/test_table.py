import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.places import NOWHERE, Place
from spegel_consul.ring.dht.keys import position
from spegel_consul.ring.dht.messages import MemberReport, WirePeer
from spegel_consul.ring.members.member import QUIET_AGE, SETTLED
from spegel_consul.ring.members.rate_limit import RateLimit
from spegel_consul.ring.members.table import FORGET_AFTER, HEARSAY_AGE, Members
from spegel_consul.ring.net.host import HANDSHAKE_TIMEOUT

ROUTER, OTHER = Address("10.0.0.1", 5001), Address("10.0.0.2", 5001)
REGISTRY = Address("10.0.0.1", 5000, http=True)


def table(**options: int) -> Members:
    return Members(b"me", rng=random.Random(7), **options)


def closest(members: Members) -> list[bytes]:
    return members.closest(position(b"key"))


def test_it_learns_peers_but_not_itself_nor_one_without_address() -> None:
    members = table()
    assert members.learn(Contact(b"me", (ROUTER,)), 0) is None
    assert members.learn(Contact(b"a", ()), 0) is None
    new = members.learn(Contact(b"a", (ROUTER,), REGISTRY), 0)
    assert new is not None
    assert new.wire.addresses == (ROUTER.encode(), REGISTRY.encode())
    assert members.learn(Contact(b"a", (ROUTER,)), 0) is None
    assert closest(members) == [b"a"]


def test_hearsay_that_says_nothing_new_is_noted_and_anything_else_is_left_to_learn() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0, age=50)
    assert member is not None
    assert member.info.addrs == (str(ROUTER),)
    unknown, elsewhere = WirePeer(b"b", member.wire.addresses), WirePeer(b"a", (OTHER.encode(),))
    said = [MemberReport(*each) for each in ((unknown, 0), (member.wire, 30), (elsewhere, 0), (member.wire, 90))]
    assert members.confirm(said, 100, b"other") == [(unknown, 0, NOWHERE), (elsewhere, 0, NOWHERE)]
    assert member.heard == 70, "older news changes nothing"
    members.failed(b"a", 101)
    assert members.confirm([MemberReport(member.wire, 0)], 102, b"other") == [(member.wire, 0, NOWHERE)], "dead"
    members.learn(Contact(b"a", (OTHER,)), 103)
    assert member.info.addrs == (str(OTHER),)


def test_a_reset_member_may_return_until_it_fails_again_and_a_silent_one_may_not() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0)
    assert member is not None
    assert members.failed(b"a", 2, asked=1, reset=True)
    assert not members.failed(b"a", 2.1, asked=1.5, reset=True)
    assert (member.may_return, member.failures) == (True, 1), "one reset ended both questions"
    assert not members.failed(b"a", 2.2, asked=1.9)
    assert (member.may_return, member.failures) == (False, 1), "one of the questions had no answer in time"
    assert members.answered(b"a", 3)
    assert not member.may_return
    assert members.failed(b"a", 4, asked=3, reset=True)
    assert not members.failed(b"a", 5, asked=4.1, reset=True)
    assert (member.may_return, member.failures) == (False, 2)
    members.answered(b"a", 6)
    members.failed(b"a", 7, asked=6.5)
    assert not members.failed(b"a", 7.1, asked=6.5, reset=True)
    assert not member.may_return, "its silence counts, whatever ends the other questions"
    members.answered(b"a", 8)
    members.failed(b"a", 9, replaced=True)
    assert not member.may_return


def test_a_failure_makes_dead_and_an_answer_makes_alive() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    assert members.failed(b"a", 1)
    assert not members.failed(b"a", 2), "it was dead already"
    assert (members.is_alive(b"a"), closest(members), members.living(), members.infos()) == (False, [], [], ())
    assert members.answered(b"a", 3)
    assert not members.answered(b"a", 4)
    assert (members.is_alive(b"a"), closest(members)) == (True, [b"a"])


@given(st.lists(st.tuples(st.sampled_from(["learn", "direct", "answered", "failed", "replaced"]), st.integers(0, 3))))
def test_who_is_named_to_the_outside_are_the_living_with_their_latest_addresses(steps: list[tuple[str, int]]) -> None:
    members = table()
    for now, (event, number) in enumerate(steps):
        peer, at = bytes([number]), Address("10.0.0.1", 5000 + now % 2)
        if event in ("learn", "direct"):
            members.learn(Contact(peer, (at,)), now, direct=event == "direct")
        elif event == "answered":
            members.answered(peer, now)
        else:
            members.failed(peer, now, replaced=event == "replaced")
        assert list(members.infos()) == [member.info for member in members.living()]
        assert {info.addrs for info in members.infos()} == {
            tuple(map(str, member.routers)) for member in members.living()
        }


def test_the_dead_are_probed_at_once_then_ever_more_rarely_and_forgotten() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    now, waits = 0.0, []
    members.failed(b"a", now)
    while members.get(b"a") is not None:
        due = members.next_probe()
        waits.append(due - now)
        assert members.due(due - 0.001) == []
        now = due
        assert [member.id for member in members.due(now)] == [b"a"]
        assert members.due(now) == [], "a probe is under way"
        members.failed(b"a", now)
    assert len(waits) >= FORGET_AFTER - 1
    assert waits[0] < 0.2
    assert all(later > earlier for earlier, later in itertools.pairwise(waits[:5]))
    assert HEARSAY_AGE < now < HEARSAY_AGE + 60
    # who has not noticed its death last heard from it before
    assert members.learn(Contact(b"a", (ROUTER,)), now, age=now) is None


def test_the_dead_stay_known_while_others_report_them() -> None:
    """And a number of failures without end is no number that is too large."""
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0)
    for now in range(10, 60_000, 40):
        members.learn(Contact(b"a", (ROUTER,)), now, age=50)
        members.failed(b"a", now)
    assert members.get(b"a") is member
    assert not members.is_alive(b"a")
    assert members.next_probe() - now < 60


def test_whose_address_another_one_has_is_looked_for_once_more_when_nobody_would_name_it() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.failed(b"a", 10, replaced=True)
    assert not members.is_alive(b"a")
    members.learn(Contact(b"a", (ROUTER,)), 11, age=5)  # by somebody who has not noticed
    assert members.next_probe() > 10 + HEARSAY_AGE
    assert len(members.due(600)) == 1
    members.failed(b"a", 600, replaced=True)
    assert members.get(b"a") is None


def test_whose_address_another_one_had_comes_back() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.failed(b"a", 10, replaced=True)
    assert members.answered(b"a", 20)
    assert members.is_alive(b"a")
    assert members.next_probe() == 20 + QUIET_AGE
    members.failed(b"a", 21, replaced=True)
    members.learn(Contact(b"a", (OTHER,)), 22)  # it has moved
    assert members.next_probe() == 22


def test_a_lost_connection_brings_a_probe_but_no_death() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.suspect(b"a", 10)
    assert members.is_alive(b"a")
    assert [member.id for member in members.due(10.2)] == [b"a"]
    members.answered(b"a", 10.3)
    assert members.due(11) == []


def test_who_was_not_heard_of_for_long_is_probed() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.learn(Contact(b"b", (OTHER,)), 0)
    members.learn(Contact(b"b", (OTHER,)), QUIET_AGE, age=5)  # others heard from it
    assert members.next_probe() == QUIET_AGE
    assert [member.id for member in members.due(QUIET_AGE + 1)] == [b"a"]


def test_old_hearsay_introduces_nobody() -> None:
    members = table()
    assert members.learn(Contact(b"a", (ROUTER,)), 1000, age=HEARSAY_AGE + 1) is None
    assert members.learn(Contact(b"a", (ROUTER,)), 1000, age=HEARSAY_AGE - 1) is not None


def test_hearsay_neither_revives_nor_replaces_what_a_living_member_said() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,), REGISTRY), 0, direct=True)
    members.learn(Contact(b"a", (OTHER,), Address("10.0.0.9", 1, http=True)), 1)
    member = members.get(b"a")
    assert member is not None
    assert (member.routers, member.registry) == ((ROUTER,), REGISTRY)
    members.failed(b"a", 2)
    members.learn(Contact(b"a", (ROUTER,)), 3)
    assert not members.is_alive(b"a")
    # but it tells where to look for one that is not where it was
    members.learn(Contact(b"a", (OTHER,)), 4)
    assert member.routers == (OTHER,)
    assert [each.id for each in members.due(4)] == [b"a"]


def test_if_others_heard_from_one_that_failed_it_is_probed_again() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    for now in (10, 11, 13, 20):
        members.failed(b"a", now)
    assert members.next_probe() > 23
    members.learn(Contact(b"a", (ROUTER,)), 21, age=5)
    assert members.next_probe() > 23, "that was before it failed"
    members.learn(Contact(b"a", (ROUTER,)), 21, age=0)
    assert members.next_probe() == 22, "soon, but not at once"
    members.learn(Contact(b"a", (ROUTER,)), 25, age=1)
    assert [member.id for member in members.due(25)] == [b"a"]
    members.learn(Contact(b"a", (ROUTER,)), 26, age=1)
    assert members.due(30) == [], "a probe is under way"


def test_what_a_member_says_of_itself_counts() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.learn(Contact(b"a", (OTHER,), REGISTRY), 1, direct=True)
    member = members.get(b"a")
    assert member is not None
    assert (member.routers, member.registry) == ((OTHER,), REGISTRY)
    members.learn(Contact(b"a", (OTHER,)), 2, direct=True)
    assert member.registry == REGISTRY, "a message without a registry does not withdraw it"


def test_a_full_table_gives_up_the_dead_first_and_never_the_living() -> None:
    members = table(capacity=2)
    members.learn(Contact(b"a", (ROUTER,)), 0, source=b"a")
    members.learn(Contact(b"b", (ROUTER,)), 0, source=b"b")
    assert members.learn(Contact(b"c", (ROUTER,)), 0, source=b"c") is None
    members.failed(b"a", 1)
    assert members.learn(Contact(b"c", (ROUTER,)), 2, source=b"c") is not None
    assert {member.id for member in members} == {b"b", b"c"}


def test_a_table_is_full_until_some_places_are_free_again() -> None:
    members = table(capacity=100)
    for number in range(100):
        assert not members.full
        members.learn(Contact(b"%d" % number, (ROUTER,)), 0, direct=True)
    assert members.full
    members.failed(b"0", 1)
    assert members.full, "one that comes and goes changes nothing"
    members.learn(Contact(b"new", (ROUTER,)), 2, direct=True)
    assert members.full
    members.failed(b"1", 3)
    members.failed(b"2", 3)
    assert not members.full


def test_the_time_to_wait_for_an_answer_follows_the_round_trip_time() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    member = members.get(b"a")
    assert member is not None
    for _ in range(50):
        members.answered(b"a", 0, took=0.001)
    assert member.timeout == 0.5
    for _ in range(50):
        members.answered(b"a", 0, took=1.0)
    assert member.timeout == 3.0


def test_one_source_names_only_a_share_of_the_table() -> None:
    members = table(capacity=8)
    for number in range(8):
        members.learn(Contact(b"a%d" % number, (ROUTER,)), 0, source=b"liar")
    assert len(members) == 4
    assert members.learn(Contact(b"b", (ROUTER,)), 0, source=b"other") is not None
    members.answered(b"a0", 1)
    assert members.learn(Contact(b"a9", (ROUTER,)), 1, source=b"liar") is not None, "a0 is more than a rumour now"


def test_who_speaks_for_itself_takes_the_place_of_one_that_was_only_named() -> None:
    members = table(capacity=4)
    members.learn(Contact(b"honest", (ROUTER,)), 0, direct=True)
    for number in range(2):
        members.learn(Contact(b"a%d" % number, (ROUTER,)), 0, source=b"liar")
    members.learn(Contact(b"b", (ROUTER,)), 0, source=b"other")
    assert members.learn(Contact(b"c", (ROUTER,)), 0, source=b"third") is None
    for newcomer in (b"x", b"y", b"z"):
        assert members.learn(Contact(newcomer, (ROUTER,)), 1, direct=True) is not None
    assert {member.id for member in members} == {b"honest", b"x", b"y", b"z"}
    assert set(closest(members)) == {b"honest", b"x", b"y", b"z"}
    assert members.learn(Contact(b"late", (ROUTER,)), 1, direct=True) is None


def test_how_often_one_may_ask() -> None:
    pace = RateLimit(every=1.0, burst=3)
    assert [pace.admits(b"a", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert pace.admits(b"b", 0.0)
    assert [pace.admits(b"a", 1.0) for _ in range(2)] == [True, False]


def test_a_member_is_settled_when_it_was_in_contact_for_long_without_a_break() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 100, age=50)
    assert member is not None
    assert [member.is_settled(100 + after) for after in (0, SETTLED - 1, SETTLED)] == [False, False, True]
    members.suspect(b"a", 200)  # a connection was lost: perhaps it has restarted
    assert [member.is_settled(200 + after) for after in (0, SETTLED)] == [False, True]
    members.failed(b"a", 300)
    assert not member.is_settled(300 + SETTLED)
    members.answered(b"a", 400)
    assert [member.is_settled(400 + after) for after in (0, SETTLED)] == [False, True]
    members.answered(b"a", 405)
    assert member.is_settled(400 + SETTLED), "an answer of a living member is no break"


A, B = Place("dc1", "a"), Place("dc1", "b")


def test_a_member_says_its_place_itself_and_others_only_fill_the_gap() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0, place=A)
    assert member is not None
    assert member.place == A, "hearsay is better than nothing"
    members.learn(Contact(b"a", (ROUTER,)), 1, place=B)
    assert member.place == B, "the newest hearsay"
    members.learn(Contact(b"a", (ROUTER,)), 2, direct=True, place=A)
    members.learn(Contact(b"a", (ROUTER,)), 3, place=B)
    assert member.place == A, "a liar moves nobody else"
    members.learn(Contact(b"a", (ROUTER,)), 4, direct=True)
    assert member.place == A, "an announcement has no place"
    members.learn(Contact(b"a", (ROUTER,)), 4, place=NOWHERE)
    assert member.place == A, "the other one may not know it"
    members.suspect(b"a", 5)
    members.learn(Contact(b"a", (ROUTER,)), 6, place=B)
    assert member.place == B, "it may be a new process, which has told others first"
    members.learn(Contact(b"a", (ROUTER,)), 7, direct=True, place=NOWHERE)
    assert member.place == NOWHERE, "it has none any more"
    members.learn(Contact(b"a", (ROUTER,)), 8, place=B)
    assert member.place == NOWHERE


def test_a_report_with_another_place_is_left_to_learn() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0, place=A)
    assert member is not None
    same, moved, silent = (MemberReport(member.wire, 0, place) for place in (Place("dc1", "a"), B, NOWHERE))
    assert members.confirm([same, moved, silent], 10, b"other") == [moved]
    assert members.confirm([same, moved, silent], 10, b"a") == [same, moved, silent], "its own word"


def test_the_first_round_trip_counts_as_it_is() -> None:
    members = table()
    member = members.learn(Contact(b"a", (ROUTER,)), 0)
    assert member is not None
    assert not member.timed
    members.answered(b"a", 1, 0.001)
    assert (member.timed, member.rtt) == (True, pytest.approx(0.001))
    members.answered(b"a", 2, 0.006)
    assert member.rtt == pytest.approx(0.002)


def test_a_probe_that_told_nothing_is_followed_by_another_one() -> None:
    members = table()
    members.learn(Contact(b"a", (ROUTER,)), 0)
    members.suspect(b"a", 10)
    assert [member.id for member in members.due(11)] == [b"a"]
    members.put_off(b"a", 21)
    assert 21 + 30 < members.next_probe() < 21 + 60
    assert [member.id for member in members.due(81)] == [b"a"]
    members.answered(b"a", 82)
    members.put_off(b"a", 82)
    assert members.next_probe() == 82 + QUIET_AGE


def test_a_member_that_hangs_at_all_its_addresses_has_time_to_fail_at_each() -> None:
    for count in (1, 2, 3):
        member = table().learn(Contact(b"a", (ROUTER,) * count), 0)
        assert member is not None
        assert member.cold_timeout > count * HANDSHAKE_TIMEOUT + 1
    hostile = table().learn(Contact(b"a", (ROUTER,) * 10_000), 0)
    assert hostile is not None
    assert hostile.cold_timeout <= 30
