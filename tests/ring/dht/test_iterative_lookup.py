import heapq
import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.ring.dht.iterative_lookup import HEDGE, PARALLEL, SPREAD, AnswerTimes, Lookup

NEAREST = [b"p%02d" % number for number in range(20)]


class InOrder(random.Random):
    """Draws the first ones, for tests that follow who is asked."""

    def sample(self, population, k, *, counts=None):  # type: ignore[no-untyped-def, override]
        return list(population)[:k]


def lookup(candidates: list[bytes] = NEAREST, count: int = 3) -> Lookup:
    return Lookup(lambda: candidates, count=count, exclude=b"me", hedge=0.02, rng=InOrder())


def test_three_are_asked_and_each_answer_brings_the_next() -> None:
    search = lookup()
    assert search.ask(0.0) == NEAREST[:3]
    assert search.ask(0.01) == []
    search.answered(NEAREST[1], 0.011)
    assert search.ask(0.011) == [NEAREST[3]]
    search.failed(NEAREST[0], 0.012)
    assert search.ask(0.012) == [NEAREST[4]]
    assert not search.done


def test_silence_brings_one_more_per_interval() -> None:
    search = lookup()
    search.ask(0.0)
    asked, now = [], 0.0
    for _ in range(4):
        now = search.wake_at + 0.0001
        asked += search.ask(now)
        assert search.ask(now) == []
    assert asked == NEAREST[3:7]
    assert 0.08 < now < 0.09


def at(*providers: bytes) -> dict[bytes, bytes]:
    """Providers that each have an address of their own."""
    return {provider: b"address of " + provider for provider in providers}


def test_it_ends_without_a_question_when_enough_are_known_here() -> None:
    search = lookup(count=2)
    assert search.offer(at(b"x", b"me", b"y", b"z"), own=True) == [b"x", b"y"]
    assert search.done


def test_many_ids_of_one_address_known_here_do_not_end_it() -> None:
    search = lookup()
    assert search.offer(dict.fromkeys([b"x", b"y", b"z"], b"one address"), own=True) == [b"x", b"y", b"z"]
    assert search.found == 1
    assert not search.done
    assert search.ask(0.0) == NEAREST[:3]


def test_of_one_answer_the_names_with_new_addresses_come_first() -> None:
    search = lookup(count=2)
    named = {**dict.fromkeys([b"%d" % number for number in range(20)], b"one address"), **at(b"x")}
    assert search.offer(named) == [b"0", b"x"]


def test_names_of_one_peer_do_not_end_it_and_leave_those_of_others_their_places() -> None:
    search = lookup()
    search.ask(0.0)
    search.answered(NEAREST[0], 0.001)
    assert search.offer(at(b"false 1", b"false 2", b"false 3", b"false 4")) == [b"false 1", b"false 2", b"false 3"]
    assert not search.done
    assert search.ask(0.001) == [], "the two that are asked already suffice"
    search.answered(NEAREST[1], 0.001)
    assert search.offer(at(b"x", b"y")) == [b"x", b"y"]
    search.answered(NEAREST[2], 0.001)
    assert search.offer(at(b"x", b"y")) == []
    assert search.done


def test_peers_that_agree_name_no_more_than_count() -> None:
    search = lookup(count=2)
    for peer in search.ask(0.0):
        search.answered(peer, 0.001)
        search.offer(at(b"x", b"y", b"z"))
    assert search.done
    assert search.found == 2


def test_who_may_be_gone_is_named_at_the_end_if_there_are_too_few_others() -> None:
    search = lookup(count=2)
    assert search.offer(at(b"gone", b"also gone"), last={b"gone", b"also gone"}, own=True) == []
    for peer in search.ask(0.0):
        assert not search.done
        search.answered(peer, 0.001)
        search.offer(at(b"x", b"gone"), last={b"gone"})
    assert search.done
    assert search.finish() == [b"gone"]


def test_for_who_may_be_gone_no_more_than_three_are_asked() -> None:
    search = lookup()
    search.offer(at(b"gone"), last={b"gone"}, own=True)
    for peer in search.ask(0.0):
        search.answered(peer, 0.001)
        assert search.ask(0.001) == []
    assert search.done
    assert search.finish() == [b"gone"]


@given(
    liars=st.sets(st.integers(0, 19), max_size=2),
    lies=st.integers(1, 20),
    addresses=st.integers(1, 20),
    silent=st.sets(st.integers(0, 19), max_size=3),
    holders=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
)
def test_liars_among_the_keepers_do_not_hide_an_honest_provider(
    liars: set[int], lies: int, addresses: int, silent: set[int], holders: int, seed: int
) -> None:
    rng = random.Random(seed)
    honest = at(*[b"honest %d" % number for number in range(holders)])
    search = Lookup(lambda: NEAREST, count=3, exclude=b"me", hedge=0.02, rng=rng)
    answers: list[tuple[float, bytes]] = []
    found: list[bytes] = []
    asked, now = 0, 0.0
    while not search.done:
        for peer in search.ask(now):
            asked += 1
            late = 0.5 if int(peer[1:]) in silent else rng.uniform(0.001, 0.01)
            heapq.heappush(answers, (now + late, peer))
        if not answers or search.wake_at < answers[0][0]:
            now = search.wake_at
            continue
        now, peer = heapq.heappop(answers)
        number = int(peer[1:])
        if number in silent:
            search.failed(peer, now)
            continue
        search.answered(peer, now)
        named = honest
        if number in liars:
            named = {b"%d by %d" % (each, number): b"%d" % (each % addresses) for each in range(lies)}
        order = rng.sample(list(named), len(named))
        found += search.offer({each: named[each] for each in order})
    assert min(3, holders) <= len(set(found) & set(honest))
    assert len(found) == len(set(found)) <= 3 * PARALLEL
    if not silent:
        assert asked == PARALLEL


def test_it_ends_when_something_is_found_and_three_have_answered() -> None:
    search = lookup()
    search.ask(0.0)
    for peer in NEAREST[:2]:
        search.answered(peer, 0.001)
        search.offer(at(b"x"))
        assert not search.done
    search.answered(NEAREST[2], 0.001)
    assert search.done
    assert search.found == 1


def test_without_a_find_all_candidates_are_asked_and_awaited() -> None:
    search = lookup()
    waiting = search.ask(0.0)
    asked = list(waiting)
    while not search.done:
        peer = waiting.pop(0)
        search.answered(peer, 0.001)
        new = search.ask(0.001)
        asked += new
        waiting += new
    assert asked == NEAREST
    assert waiting == []


def settled(*peers: bytes, own: bool = False) -> Lookup:
    return Lookup(
        lambda: NEAREST, count=3, exclude=b"me", settled=set(peers).__contains__, own_settled=own, rng=InOrder()
    )


def asked_until_the_end(search: Lookup) -> list[bytes]:
    """The peers that are asked if each answers with nothing, in the order of the questions."""
    waiting = search.ask(0.0)
    asked = list(waiting)
    while not search.done:
        search.answered(waiting.pop(0), 0.001)
        new = search.ask(0.001)
        asked += new
        waiting += new
    assert waiting == []
    return asked


def test_three_certain_answers_are_enough_to_find_nothing() -> None:
    assert asked_until_the_end(settled(*NEAREST)) == NEAREST[:3]


def test_two_are_enough_beside_the_own_records() -> None:
    assert asked_until_the_end(settled(*NEAREST, own=True)) == NEAREST[:2]


def test_the_answer_of_a_peer_that_has_just_joined_is_not_certain() -> None:
    assert asked_until_the_end(settled(*NEAREST[:2])) == NEAREST, "two are certain, so all are asked"
    assert set(asked_until_the_end(settled(*NEAREST[12:], own=True))) > set(NEAREST[:12])


def test_a_peer_that_has_just_joined_is_asked_for_the_keys_that_it_still_announces() -> None:
    for new in (NEAREST[1], NEAREST[19]):
        asked = asked_until_the_end(settled(*set(NEAREST) - {new}, own=True))
        assert new in asked
        assert len(asked) == 3
    search = settled(*NEAREST[:19])
    search.ask(0.0)
    for peer in NEAREST[:3]:
        search.answered(peer, 0.001)
        search.ask(0.001)
    assert not search.done, "the new one has not answered"
    search.failed(NEAREST[19], 0.002)
    assert search.done


def test_a_failure_is_no_empty_answer() -> None:
    search = settled(*NEAREST)
    for peer in search.ask(0.0):
        search.failed(peer, 0.001)
    assert not search.done
    assert search.ask(0.001) == NEAREST[3:6]


def test_silence_brings_one_more_although_enough_are_asked() -> None:
    search = settled(*NEAREST, own=True)
    assert search.ask(0.0) == NEAREST[:2]
    assert search.ask(search.wake_at + 0.001) == NEAREST[2:3]
    search.answered(NEAREST[0], 0.03)
    assert search.ask(0.03) == []
    search.answered(NEAREST[2], 0.031)
    assert search.done


def test_a_find_after_an_empty_answer_ends_with_three_answers() -> None:
    search = settled(*NEAREST, own=True)
    search.ask(0.0)
    search.answered(NEAREST[0], 0.001)
    search.answered(NEAREST[1], 0.001)
    assert search.offer(at(b"x")) == [b"x"]
    assert not search.done
    assert search.ask(0.001) == NEAREST[2:3]
    search.answered(NEAREST[2], 0.002)
    assert search.done


@given(lacking=st.sets(st.integers(0, 19), max_size=2), seed=st.integers(0, 1 << 30))
def test_a_record_that_two_of_its_keepers_lack_is_found(lacking: set[int], seed: int) -> None:
    search = Lookup(lambda: NEAREST, count=3, exclude=b"me", settled=lambda peer: True, rng=random.Random(seed))
    found: list[bytes] = []
    while not search.done:
        for peer in search.ask(0.0):
            search.answered(peer, 0.0)
            if int(peer[1:]) not in lacking:
                found += search.offer(at(b"x"))
    assert found == [b"x"]


def test_without_candidates_it_is_over_at_once() -> None:
    search = lookup([])
    assert search.ask(0.0) == []
    assert search.done


def test_candidates_that_appear_meanwhile_are_asked() -> None:
    candidates = NEAREST[5:7]
    search = lookup(candidates)
    assert search.ask(0.0) == NEAREST[5:7]
    assert search.wake_at == float("inf")
    candidates.insert(0, NEAREST[0])
    search.answered(NEAREST[5], 0.001)
    assert not search.done
    assert search.ask(0.001) == [NEAREST[0]]
    search.failed(NEAREST[6], 0.002)
    search.failed(NEAREST[0], 0.002)
    assert search.done


def test_a_thousand_nodes_that_want_one_key_ask_a_dozen_and_not_three() -> None:
    asked: Counter[bytes] = Counter()
    for node in range(1000):
        search = Lookup(lambda: NEAREST, count=3, exclude=b"me", rng=random.Random(node))
        asked.update(search.ask(0.0))
    assert set(asked) == set(NEAREST[:SPREAD])
    assert max(asked.values()) < 1.3 * 1000 * PARALLEL / SPREAD


def test_the_hedge_interval_is_what_nine_of_ten_answers_took() -> None:
    times = AnswerTimes()
    assert times.hedge == HEDGE
    for _ in range(100):
        times.took(0.030)
    times.took(5.0)
    assert times.hedge == 0.030
    for _ in range(200):
        times.took(0.0001)
    assert 0.001 < times.hedge < HEDGE, "never so short that all are asked at once"
    for _ in range(200):
        times.took(3.0)
    assert times.hedge < 0.2, "nor so long that a pull waits for it"
