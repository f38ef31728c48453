import random
from collections import Counter

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


def test_it_ends_when_enough_are_found() -> None:
    search = lookup(count=2)
    search.ask(0.0)
    assert search.offer([b"x", b"me", b"x", b"y", b"z"]) == [b"x", b"y"]
    assert search.done
    assert search.offer([b"z"]) == []


def test_it_ends_when_something_is_found_and_three_have_answered() -> None:
    search = lookup()
    search.ask(0.0)
    for peer in NEAREST[:2]:
        search.answered(peer, 0.001)
        search.offer([b"x"])
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
