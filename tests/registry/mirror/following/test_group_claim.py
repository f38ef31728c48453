"""What a verdict means for a group, without a clock and without a network."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.following.group_claim import (
    CLAIM_WITHIN,
    LINGER,
    LOST_FOR,
    RECENTLY,
    SKIPPED,
    STANDSTILL,
    Follow,
    GroupClaim,
    Work,
)
from spegel_consul.ring.dht.claim_reports import Verdict, What, Why
from spegel_consul.ring.dht.claims import MAX_LOSSES, STRUCK_FOR

ONE, TWO, BARRED = (Provider(name, ("10.0.0.1", port)) for port, name in enumerate(("one", "two", "barred"), 1))
CLAIM, ALONE = Verdict(What.CLAIM), Verdict(What.ALONE)
WORKING = Work(serves=True, have=1, working=True)


def follow(*sources: Provider, again: float = 2.0) -> Verdict:
    return Verdict(What.FOLLOW, sources, again)


@dataclass
class Rig:
    now: float = 100.0
    due: int = 0
    failures: list[Why] = field(default_factory=list)
    received: int = 0

    def __post_init__(self) -> None:
        self.claim = GroupClaim(
            "group", lambda each: each is not BARRED, lambda: self.now, self._due, self.failures.append, self._received
        )

    def _due(self) -> None:
        self.due += 1

    def _received(self, count: int) -> None:
        self.received += count

    def report(self, verdict: Verdict | None, work: Work = WORKING) -> tuple[str, Why]:
        """Send the report that is due, and answer it."""
        self.now = max(self.now, self.claim.due)
        sent = self.claim.report(work, ())
        if verdict is None:
            self.claim.unanswered()
        else:
            self.claim.answer(verdict)
        return sent.lost, sent.why

    def request(self) -> Follow:
        assert self.claim.to_follow is not None
        return Follow(self.claim, self.claim.to_follow)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_first_request_waits_for_the_first_report(rig: Rig) -> None:
    rig.claim.ask("layer")
    assert not rig.claim.answered
    assert rig.claim.due <= rig.now
    rig.report(follow(ONE))
    assert rig.claim.answered
    assert rig.claim.to_follow is ONE
    rig.claim.ask("another")
    assert rig.claim.answered, "the verdict counts for the whole group"
    assert rig.claim.due == rig.now + 2.0


def test_a_source_that_failed_is_reported_once_and_at_once(rig: Rig) -> None:
    rig.report(follow(ONE))
    first, second = rig.request(), rig.request()
    first.lost(Why.CUT)
    second.lost(Why.REFUSED)
    assert not rig.claim.answered, "requests wait for the next verdict"
    assert (rig.failures, rig.due) == ([Why.CUT], 1)
    assert rig.claim.due < rig.now + 1
    assert rig.report(follow(TWO)) == ("one", Why.CUT)
    second.lost(Why.CUT)  # late
    assert rig.claim.to_follow is TWO
    assert rig.report(follow(TWO)) == ("", Why.NONE)


def test_a_verdict_that_is_older_than_a_failure_does_not_count(rig: Rig) -> None:
    rig.report(follow(ONE))
    request = rig.request()
    rig.now += 2
    rig.claim.report(WORKING, ())
    request.lost(Why.CUT)
    rig.claim.answer(follow(ONE))
    assert not rig.claim.answered
    assert rig.report(follow(TWO)) == ("one", Why.CUT)
    assert rig.claim.to_follow is TWO


@pytest.mark.parametrize("verdict", [follow(TWO), CLAIM, ALONE, follow()])
def test_all_requests_leave_a_source_together(rig: Rig, verdict: Verdict) -> None:
    rig.report(follow(ONE))
    left: list[int] = []
    requests = [rig.request(), rig.request(), rig.request()]
    for number, each in enumerate(requests[:2]):
        each.on_leave(lambda number=number: left.append(number))  # type: ignore[misc]
    rig.report(follow(Provider("one", ONE.registry)))
    assert left == []
    rig.report(verdict)
    assert sorted(left) == [0, 1]
    requests[2].on_leave(lambda: left.append(2))
    assert left[-1] == 2, "one that does not listen yet learns it when it does"
    assert all(each.over for each in requests)


def test_the_first_usable_source_is_followed(rig: Rig) -> None:
    rig.report(follow(BARRED, TWO))
    assert rig.claim.to_follow is TWO


def test_a_source_that_failed_does_not_stand_in_again_for_one_that_can_not_be_asked(rig: Rig) -> None:
    """The keeper believes a loss of the first source only, so it would name the same two without end."""
    rig.report(follow(BARRED, TWO))
    rig.request().lost(Why.CUT)
    assert rig.report(follow(BARRED, TWO)) == ("two", Why.CUT)
    assert not rig.claim.answered
    assert rig.report(follow(ONE, BARRED)) == ("barred", Why.UNREACHABLE)
    assert rig.claim.to_follow is ONE
    rig.report(follow(TWO))
    assert rig.claim.to_follow is TWO, "the keeper may assign it again"
    rig.now += LOST_FOR
    rig.report(follow(BARRED, TWO))
    assert rig.claim.to_follow is TWO


def test_a_keeper_that_names_nothing_but_sources_that_fail_is_not_believed_for_a_while(rig: Rig) -> None:
    """An honest keeper says "alone" by itself after as many failures. A dishonest one makes each request wait."""
    rig.report(follow(ONE))
    for number in range(MAX_LOSSES):
        rig.request().lost(Why.REFUSED)
        rig.report(follow(TWO if number % 2 else ONE))
    assert (rig.claim.answered, rig.claim.to_follow, rig.claim.role) == (True, None, "alone")
    rig.now += STRUCK_FOR - 1
    rig.claim.ask("layer")
    assert not rig.claim.ended
    rig.report(follow(ONE))
    assert rig.claim.to_follow is None
    rig.report(CLAIM)
    assert rig.claim.role == "claimer"
    rig.now += 1
    rig.report(follow(ONE))
    assert rig.claim.to_follow is ONE


def test_verdicts_that_can_not_be_followed_are_reported_a_few_times(rig: Rig) -> None:
    rig.report(follow(BARRED))
    for _ in range(3):
        assert not rig.claim.answered
        assert rig.report(follow(BARRED)) == ("barred", Why.UNREACHABLE)
    assert rig.claim.answered
    assert rig.claim.to_follow is None


def test_a_keeper_that_misses_the_limit_is_not_waited_for(rig: Rig) -> None:
    rig.claim.ask("layer")
    rig.claim.report(WORKING, ())
    rig.claim.missed()
    assert rig.claim.answered
    assert rig.claim.to_follow is None
    rig.claim.unanswered()
    rig.now += SKIPPED - 0.1
    rig.claim.ask("layer")
    assert rig.claim.answered
    assert not rig.claim.ended
    rig.now += 0.2
    rig.claim.ask("layer")
    assert not rig.claim.answered
    rig.report(follow(ONE))
    assert rig.claim.to_follow is ONE


def test_without_a_keeper_transfers_go_on_until_their_source_fails(rig: Rig) -> None:
    rig.report(follow(ONE))
    request = rig.request()
    rig.report(None)
    assert rig.claim.to_follow is ONE
    assert not request.over
    request.lost(Why.CUT)
    rig.report(None)
    assert rig.claim.to_follow is None
    assert rig.claim.answered
    assert rig.report(follow(TWO)) == ("one", Why.CUT), "the next report that is answered says it"


def test_a_claimer_goes_on_while_it_works_and_asks_again_when_it_does_not(rig: Rig) -> None:
    rig.report(CLAIM)
    rig.now += 1.9
    rig.claim.ask("layer")
    assert rig.claim.answered
    rig.report(CLAIM, Work(serves=True, have=1))
    rig.now += 0.6
    rig.claim.ask("layer")
    assert not rig.claim.answered, "its download has ended, perhaps because upstream refused it"


def test_a_group_is_followed_from_the_first_byte_to_some_seconds_after_the_last(rig: Rig) -> None:
    rig.report(follow(ONE))
    assert not rig.claim.is_following
    request = rig.request()
    assert not rig.claim.is_following, "the source has sent nothing yet"
    request.streams = True
    assert rig.claim.is_following
    rig.report(follow(TWO))
    request.close()
    assert rig.claim.is_following
    rig.now += RECENTLY
    assert rig.claim.is_following
    rig.now += 0.1
    assert not rig.claim.is_following
    rig.request().close(100)  # a small body, read at once
    assert rig.claim.is_following
    rig.request().lost(Why.CUT)
    assert not rig.claim.is_following, "there is no source until the next verdict"
    rig.report(CLAIM)
    assert not rig.claim.is_following


def test_the_end(rig: Rig) -> None:
    rig.report(follow(ONE), Work(serves=True))
    request = rig.request()
    rig.now += 100
    assert not rig.claim.ended, "a transfer runs"
    request.close(500)
    request.close(500)
    assert rig.received == 500
    assert not rig.claim.ended
    rig.now += LINGER
    assert rig.claim.ended
    rig.claim.ask("layer")
    assert not rig.claim.ended


def test_downloads_that_stand_still_end_too(rig: Rig) -> None:
    rig.report(CLAIM, Work(True, 1000, True))
    for _ in range(int(STANDSTILL / 2) - 1):
        rig.report(CLAIM, Work(True, 1000, True))
        assert not rig.claim.ended
    rig.report(CLAIM, Work(True, 1000, True))
    rig.now += 2
    assert rig.claim.ended
    rig.report(CLAIM, Work(True, 1001, True))
    assert not rig.claim.ended


def test_nobody_counts_on_a_node_that_is_alone(rig: Rig) -> None:
    rig.report(ALONE, Work())
    assert rig.claim.ended


@pytest.mark.parametrize(("asked_for", "waits"), [(0.0, 0.5), (-1.0, 0.5), (1e9, 20.0), (3.0, 3.0)])
def test_a_keeper_can_not_choose_any_pause(rig: Rig, asked_for: float, waits: float) -> None:
    rig.report(follow(ONE, again=asked_for))
    assert rig.claim.due == rig.now + waits


EVENTS = st.lists(
    st.sampled_from(
        ["ask", "lose", "one", "two", "claim", "alone", "bad", "none", "miss", "second", "follow", "close"]
    ),
    max_size=60,
)


@given(events=EVENTS)
def test_in_any_order(events: list[str]) -> None:
    """Requests never follow what has failed or is not usable, never wait for ever, and reports are apart."""
    rig, requests, sent_at = Rig(), [], []
    verdicts = {"one": follow(ONE), "two": follow(TWO), "claim": CLAIM, "alone": ALONE, "bad": follow(BARRED)}
    for event in events:
        claim = rig.claim
        if event == "ask":
            claim.ask("layer")
            assert claim.answered or claim.due <= rig.now + 0.1
        elif event == "lose" and requests:
            requests[-1].lost(Why.CUT)
        elif event == "miss" and not claim.answered:
            claim.missed()
            assert claim.answered
        elif event == "second":
            rig.now += CLAIM_WITHIN
        elif event == "follow" and claim.answered and claim.to_follow is not None:
            requests.append(rig.request())
        elif event == "close" and requests:
            requests.pop().close()
        elif event == "none" or event in verdicts:
            rig.report(verdicts.get(event))
            sent_at.append(rig.now)
        assert claim.to_follow is not BARRED
        assert claim.follows == set(requests)
        for each in requests:
            assert each.over or each.source == claim.source
    assert all(later - earlier >= 0.0999 for earlier, later in pairwise(sent_at))
