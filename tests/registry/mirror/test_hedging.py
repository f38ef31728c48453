import math

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.hedging import Ask, Exhausted, Race, Wait


def peer(number: int) -> Provider:
    return Provider(f"peer{number}", (f"10.0.0.{number}", 5000))


def race(attempts: int = 3) -> Race:
    return Race(0.0, resolve_timeout=0.2, attempts=attempts, hedge=0.1)


def test_first_provider_is_asked_at_once_and_the_next_after_the_hedge() -> None:
    core = race()
    assert core.next(0.0) == Wait(0.2, starved=True)
    core.found(peer(1))
    core.found(peer(2))
    core.found(peer(1))
    assert core.next(0.01) == Ask(peer(1))
    assert core.next(0.01) == Wait(0.11)
    assert core.next(0.11) == Ask(peer(2))
    assert core.next(0.11) == Wait(0.11 + 0.1)
    assert core.next(0.25) == Wait(math.inf, starved=True)


def test_the_first_two_providers_of_a_tag_are_asked_at_once() -> None:
    core = Race(0.0, resolve_timeout=0.2, attempts=3, hedge=0.1, abreast=2)
    for number in (1, 2, 3):
        core.found(peer(number))
    assert core.next(0.01) == Ask(peer(1))
    assert core.next(0.01) == Ask(peer(2))
    assert core.next(0.01) == Wait(0.11)
    core.failed(peer(1), 0.02)
    assert core.next(0.02) == Wait(0.11)
    core.failed(peer(2), 0.03)
    assert core.next(0.03) == Ask(peer(3))


def test_a_failure_moves_on_at_once() -> None:
    core = race()
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.failed(peer(1), 0.01)
    assert core.next(0.01) == Ask(peer(2))
    core.failed(peer(2), 0.02)
    assert core.next(0.02) == Exhausted("no further peer has it")


def test_nobody_has_it() -> None:
    core = race()
    core.lookup_ended()
    assert core.next(0.0) == Exhausted("no peer has it")


def test_lookup_deadline_counts_only_while_nobody_is_asked() -> None:
    core = race()
    core.found(peer(1))
    assert core.next(0.1) == Ask(peer(1))
    assert core.next(5.0) == Wait(math.inf, starved=True)
    core.failed(peer(1), 6.0)
    assert core.next(6.0) == Wait(6.2, starved=True)
    assert core.next(6.2) == Exhausted("no peer was found within 200 ms")


def test_attempts_are_bounded() -> None:
    core = race(attempts=2)
    for number in range(5):
        core.found(peer(number))
    for number in range(2):
        assert core.next(0.0) == Ask(peer(number))
        core.failed(peer(number), 0.0)
    assert core.next(0.0) == Exhausted("2 peers were asked and none had it")


def test_those_asked_beside_the_winner_stay_good_for_a_resumption() -> None:
    core = race()
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    assert core.next(0.1) == Ask(peer(2))
    core.accepted(peer(2))
    core.resumed(3.0)
    assert core.next(3.0) == Ask(peer(1))
    core.failed(peer(1), 3.0)
    assert isinstance(core.next(3.0), Exhausted)


def test_the_deadline_of_a_resumption_begins_with_it() -> None:
    core = race()
    core.found(peer(1))
    assert core.next(0.0) == Ask(peer(1))
    core.accepted(peer(1))
    core.resumed(30.0)
    assert core.next(30.0) == Wait(30.2, starved=True)
    core.found(peer(2))
    assert core.next(30.1) == Ask(peer(2))


def test_who_is_slow_is_asked_after_the_others_but_not_long_after() -> None:
    def slow_first() -> Race:
        core = Race(0.0, resolve_timeout=0.2, attempts=3, hedge=0.1, is_slow=lambda provider: provider == peer(1))
        core.found(peer(1))
        return core

    core = slow_first()
    assert core.next(0.0) == Wait(0.1, starved=True)
    core.found(peer(2))
    assert core.next(0.05) == Ask(peer(2))
    assert core.next(0.16) == Ask(peer(1)), "as the hedge"
    core = slow_first()
    assert core.next(0.1) == Ask(peer(1)), "nobody else was found"
    core = slow_first()
    core.lookup_ended()
    assert core.next(0.01) == Ask(peer(1)), "nobody else will be"


def test_for_the_rest_of_a_slow_ones_answer_no_slow_one_is_asked() -> None:
    core = Race(0.0, resolve_timeout=0.2, attempts=1, hedge=0.1, is_slow=lambda provider: provider != peer(3))
    for number in (1, 2):
        core.found(peer(number))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.accepted(peer(1))
    core.resumed(5.0, skip_slow=True)
    assert isinstance(core.next(5.0), Exhausted)
    core.again(peer(1))
    core.resumed(9.0)
    assert core.next(9.0) == Ask(peer(2)), "but when it dies, any is good enough"
    core.failed(peer(2), 9.0)
    core.resumed(9.0)
    assert core.next(9.0) == Ask(peer(1))


@given(st.lists(st.tuples(st.sampled_from(["found", "failed", "accepted", "ended", "tick"]), st.integers(0, 6))))
def test_no_peer_is_asked_again_after_it_failed_and_every_race_ends(steps: list[tuple[str, int]]) -> None:
    core = race()
    now, asked, failed = 0.0, set[Provider](), set[Provider]()
    for step, number in steps:
        now += number / 10
        if step == "found":
            core.found(peer(number))
        elif step == "ended":
            core.lookup_ended()
        elif asked and step == "failed":
            loser = asked.pop()
            failed.add(loser)
            core.failed(loser, now)
        elif asked and step == "accepted":
            core.accepted(asked.pop())
            core.resumed(now)
            asked.clear()
        decision = core.next(now)
        if isinstance(decision, Ask):
            assert decision.provider not in failed
            asked.add(decision.provider)
        elif isinstance(decision, Wait):
            assert decision.until > now
    core.lookup_ended()
    for _ in range(20):
        decision = core.next(now)
        if isinstance(decision, Ask):
            core.failed(decision.provider, now)
        elif isinstance(decision, Wait):
            for one in list(asked):
                core.failed(one, now)
            asked.clear()
        else:
            return
    raise AssertionError("the race did not end")
