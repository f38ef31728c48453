import math

from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.hedging import BUSY_PATIENCE, Ask, Exhausted, Race, Wait


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


def test_a_busy_provider_is_no_attempt_and_the_next_is_asked_at_once() -> None:
    core = race(attempts=1)
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), 1.0, 0.01)
    assert core.next(0.01) == Ask(peer(2))
    core.failed(peer(2), 0.02)
    assert core.next(0.02) == Exhausted("1 peers were asked and none had it")


def test_if_all_are_busy_the_first_with_room_is_asked_again() -> None:
    core = race()
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), 1.0, 0.0)
    assert core.next(0.0) == Ask(peer(2))
    core.refused(peer(2), 0.5, 0.0)
    assert core.next(0.0) == Wait(0.5)
    assert core.next(0.5) == Ask(peer(2))
    core.failed(peer(2), 0.6)
    assert core.next(0.6) == Wait(1.0)
    assert core.next(1.0) == Ask(peer(1))


def test_a_lookup_goes_on_while_all_are_busy() -> None:
    core = race()
    core.found(peer(1))
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), 1.0, 0.0)
    assert core.next(0.0) == Wait(0.2, starved=True)
    assert core.next(0.2) == Wait(1.0)
    core.found(peer(2))
    assert core.next(0.3) == Ask(peer(2)), "found late, and not busy"


def test_busy_providers_are_waited_for_for_some_seconds() -> None:
    core, now, asked = race(), 0.0, 0
    core.found(peer(1))
    core.lookup_ended()
    while not isinstance(action := core.next(now), Exhausted):
        if isinstance(action, Ask):
            asked += 1
            core.refused(peer(1), 0.5, now)
        else:
            now = action.until
    assert BUSY_PATIENCE - 1.0 < now <= BUSY_PATIENCE
    assert asked >= 8
    assert action == Exhausted("the peers that have it are busy")


def test_the_wait_for_busy_providers_ends_also_if_an_event_comes_late() -> None:
    """A time in the past would keep the task busy for ever."""
    core = race()
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), 0.5, 0.0)
    assert core.next(0.0) == Ask(peer(2))
    core.failed(peer(2), BUSY_PATIENCE + 1.0)
    assert core.next(BUSY_PATIENCE + 1.0) == Exhausted("the peers that have it are busy")


def test_a_provider_that_only_refuses_is_not_waited_for() -> None:
    core = race()
    core.found(peer(1))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), None, 0.0)
    assert isinstance(core.next(0.0), Exhausted)


def test_a_slow_source_is_not_left_to_wait_for_busy_providers() -> None:
    core = race()
    core.found(peer(1))
    core.found(peer(2))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.accepted(peer(1))
    core.resumed(5.0, skip_slow=True)
    assert core.next(5.0) == Ask(peer(2))
    core.refused(peer(2), 1.0, 5.0)
    assert isinstance(core.next(5.0), Exhausted)


def test_a_provider_that_is_excluded_is_not_waited_for() -> None:
    core = race()
    core.found(peer(1))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.refused(peer(1), 1.0, 0.0)
    core.exclude(peer(1))
    assert isinstance(core.next(0.0), Exhausted)


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


def zoned(**ranks: int) -> Race:
    """Providers above 10 are in another zone; ``ranks`` by name, else 0."""
    return Race(
        0.0,
        resolve_timeout=0.2,
        attempts=3,
        hedge=0.1,
        is_far=lambda provider: int(provider.peer_id[4:]) > 10,
        rank=lambda provider: ranks.get(provider.peer_id, 0),
    )


def test_of_those_that_wait_the_nearest_is_asked_first() -> None:
    core = zoned(peer1=3, peer2=1, peer3=1)
    for number in (1, 2, 3):
        core.found(peer(number))
    asked = []
    for now in (0.0, 0.1, 0.2):
        decision = core.next(now)
        assert isinstance(decision, Ask)
        asked.append(decision.provider)
    assert asked == [peer(2), peer(3), peer(1)], "and of equal ones the one that was found first"


def test_a_far_one_waits_for_the_end_of_the_lookup() -> None:
    core = zoned()
    core.found(peer(11))
    assert core.next(0.0) == Wait(0.1, starved=True)
    core.lookup_ended()
    assert core.next(0.003) == Ask(peer(11)), "nobody near will be found"


def test_a_far_one_waits_no_longer_than_the_hedge() -> None:
    core = zoned()
    core.found(peer(11))
    assert core.next(0.099) == Wait(0.1, starved=True)
    assert core.next(0.1) == Ask(peer(11))


def test_a_near_one_goes_before_a_far_one_that_was_found_first() -> None:
    core = zoned(peer11=-1)
    core.found(peer(11))
    core.found(peer(1))
    assert core.next(0.001) == Ask(peer(1))
    assert core.next(0.05) == Wait(0.101)
    assert core.next(0.101) == Ask(peer(11)), "as well, because the near one does not answer"


def test_when_the_near_ones_fail_the_far_one_is_asked_at_once() -> None:
    core = zoned()
    core.found(peer(11))
    core.found(peer(1))
    core.lookup_ended()
    assert core.next(0.0) == Ask(peer(1))
    core.failed(peer(1), 0.004)
    assert core.next(0.004) == Ask(peer(11))


def test_a_far_one_sends_the_rest_of_a_slow_ones_answer() -> None:
    core = zoned()
    core.found(peer(11))
    core.resumed(5.0, skip_slow=True)
    assert core.next(5.0) == Wait(5.1, starved=True)
    assert core.next(5.1) == Ask(peer(11))


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
