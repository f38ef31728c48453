# The election's decisions one by one, without a clock and without a loop.

from __future__ import annotations

import math
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spegel_consul.consul.client import KVEntry
from spegel_consul.consul.election import SAFETY, Election, ElectionSettings, State
from spegel_consul.consul.errors import (
    CheckNotPassing,
    ConsulError,
    ConsulUnavailable,
    InvalidSession,
    InvalidSessionTTL,
    NotFound,
)
from spegel_consul.consul.events import (
    Acquire,
    Acquired,
    Action,
    CreateSession,
    Destroy,
    Event,
    Failed,
    KeyRead,
    ReadKey,
    Renew,
    Renewed,
    Resign,
    SessionCreated,
    Started,
    Stopped,
    Ticked,
)
from spegel_consul.consul.record import LeaderRecord, vacant

ME = LeaderRecord("me", ("/ip4/10.0.0.1/tcp/1/p2p/me",), node="n1")
OTHER = LeaderRecord("other", ("/ip4/10.0.0.2/tcp/1/p2p/other",), node="n2")
DOWN = ConsulUnavailable("refused")


def held(by: str, record: LeaderRecord = OTHER, index: int = 20) -> KVEntry:
    return KVEntry("spegel/leader", record.to_json(session=by, since=""), by, index, 1)


def free(record: LeaderRecord | None = None, index: int = 30) -> KVEntry:
    value = record.to_json(session="gone", since="") if record else vacant(released_by="n2", at="")
    return KVEntry("spegel/leader", value, None, index, 1)


def begin(**changes: object) -> Election:
    election = Election(ElectionSettings(**changes), ME, random.Random(1))
    assert election.handle(Started(), 0) == (ReadKey(1, 0, 60.0),)
    return election


def leading(now: float = 0.0) -> Election:
    election = begin(jitter=0)
    assert election.handle(KeyRead(1, 5, None), now) == (CreateSession(15, ()),)
    assert election.handle(SessionCreated("s", now), now) == (Acquire("s"),)
    assert election.handle(Acquired(True), now) == (ReadKey(2, 0, 60.0),)
    assert election.view.state is State.CANDIDATE  # not before it was read back
    assert election.handle(KeyRead(2, 9, held("s", ME, 9)), now) == (ReadKey(3, 9, 60.0),)
    assert (election.view.state, election.view.epoch, election.view.leader) == (State.LEADER, 9, ME)
    return election


def test_a_follower_only_reads() -> None:
    election = begin()
    assert election.handle(KeyRead(1, 20, held("x")), 0) == (ReadKey(2, 20, 60.0),)
    assert (election.view.state, election.view.session, election.view.fresh) == (State.FOLLOWER, "x", True)
    assert election.view.leader.identity == OTHER.identity
    assert election.deadline == math.inf


def test_a_released_key_is_tried_after_half_a_second_at_most() -> None:
    election = begin()
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, free()), 100)
    assert isinstance(read, ReadKey)
    assert read.index == 30
    assert 0 < read.wait <= 0.5
    assert election.view.leader.identity == OTHER.identity  # stays the hint
    assert election.handle(KeyRead(3, 30, free()), 100.5) == (CreateSession(15, ()),)


def test_an_abandoned_key_waits_for_the_lock_delay() -> None:
    election = begin()
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, free(OTHER)), 100)
    assert 10 <= read.wait <= 11
    # a neighbouring write wakes the query: the rest is waited for
    [read] = election.handle(KeyRead(3, 31, free(OTHER)), 105)
    assert 5 <= read.wait <= 6


def test_who_has_just_started_does_not_wait_for_the_lock_delay() -> None:
    election = begin(jitter=0)
    assert election.handle(KeyRead(1, 30, free(OTHER)), 0) == (CreateSession(15, ()),)


def test_the_loser_destroys_its_session() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 5, None), 0)
    election.handle(SessionCreated("s", 0), 0)
    [read] = election.handle(Acquired(False), 0)
    assert 0.75 <= read.wait <= 1.25
    assert election.handle(KeyRead(2, 20, held("x")), 0) == (Destroy("s"), ReadKey(3, 20, 60.0))
    assert election.deadline == math.inf


def test_refused_by_the_lock_delay_tries_again_with_the_same_session() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 30, free(OTHER)), 0)
    election.handle(SessionCreated("s", 0), 0)
    election.handle(Acquired(False), 0)
    assert election.handle(KeyRead(2, 30, free(OTHER)), 1.3) == (Acquire("s"),)


def test_renewal_at_half_the_ttl_extends_the_lease() -> None:
    election = leading()
    assert 6.75 <= election.deadline <= 7.5
    assert election.handle(Ticked(), 7.5) == (Renew("s", 5.0),)
    assert election.deadline == 15 - SAFETY  # nothing to do but to watch the lease
    assert election.handle(Renewed("s", 7.5), 8) == ()
    assert 7.5 + 6.75 <= election.deadline <= 15


def test_failed_renewals_are_repeated_until_the_lease_ends() -> None:
    election = leading()
    now, tries = 7.5, 0
    while True:
        for action in election.handle(Ticked(), now):
            if isinstance(action, Renew):
                tries += 1
                election.handle(Failed(action, DOWN), now)
        if election.view.state is not State.LEADER:
            break
        assert election.deadline > now
        now = election.deadline
    assert now == 15 - SAFETY
    assert tries >= 4
    assert (election.view.state, election.view.leader, election.view.fresh) == (State.SUSPENDED, ME, False)
    assert election.problem == "renewing the session: refused"


def test_a_renewal_after_failures_abandons_the_read() -> None:
    election = leading()
    election.handle(Ticked(), 7.5)
    election.handle(Failed(Renew("s", 5.0), DOWN), 8)
    assert election.handle(Ticked(), 9) == (Renew("s", 5.0),)
    assert election.handle(Renewed("s", 9), 9) == (ReadKey(4, 0, 60.0),)
    assert election.handle(KeyRead(3, 9, None), 9) == ()  # the abandoned one's answer
    assert election.view.state is State.LEADER
    assert election.problem is None


def test_a_suspended_leader_does_not_lead_by_reading_alone() -> None:
    election = leading()
    election.handle(Ticked(), 14.6)
    assert election.view.state is State.SUSPENDED
    election.handle(KeyRead(4, 9, held("s", ME, 9)), 15)
    assert election.view.state is State.SUSPENDED
    [read] = election.handle(Renewed("s", 16), 16)
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 16)
    assert election.view.state is State.LEADER


def test_only_consuls_own_404_ends_the_session() -> None:
    election = leading()
    election.handle(Ticked(), 7.5)
    assert election.handle(Failed(Renew("s", 5.0), NotFound("404 <html>")), 8) == ()
    assert election.view.state is State.LEADER
    election.handle(Ticked(), 9)
    gone = NotFound("404 Session id 's' not found")
    assert election.handle(Failed(Renew("s", 5.0), gone), 9) == (ReadKey(4, 0, 60.0),)
    assert (election.view.state, election.view.session) == (State.SUSPENDED, None)


def test_any_404_ends_the_session_once_the_lease_is_over() -> None:
    election = leading()
    election.handle(Ticked(), 15)
    [read] = election.handle(Failed(Renew("s", 5.0), NotFound("404 <html>")), 16)
    assert isinstance(read, ReadKey)


def test_invalid_session_while_acquiring_starts_over() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 5, None), 0)
    election.handle(SessionCreated("s", 0), 0)
    assert election.handle(Failed(Acquire("s"), InvalidSession("500")), 0) == ()
    assert election.handle(Ticked(), election.deadline) == (ReadKey(2, 0, 60.0),)
    assert election.handle(KeyRead(2, 5, None), 1) == (CreateSession(15, ()),)


def test_an_acquire_whose_answer_was_lost_is_found_by_reading() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 5, None), 0)
    election.handle(SessionCreated("s", 0), 0)
    election.handle(Failed(Acquire("s"), DOWN), 3)
    [read] = election.handle(Ticked(), 4)
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 4)
    assert election.view.state is State.LEADER


def test_deposed_while_the_session_lives() -> None:
    election = leading()
    assert election.handle(KeyRead(3, 40, held("x", OTHER, 40)), 1) == (Destroy("s"), ReadKey(4, 40, 60.0))
    assert election.view.state is State.FOLLOWER


def test_a_ttl_that_is_too_short_is_raised() -> None:
    election = begin(jitter=0, ttl=5)
    election.handle(KeyRead(1, 5, None), 0)
    election.handle(Failed(CreateSession(5, ()), InvalidSessionTTL("500", 30.0)), 0)
    [read] = election.handle(Ticked(), 1)
    assert election.handle(KeyRead(read.number, 5, None), 1) == (CreateSession(30.0, ()),)


def test_checks_are_given_up_after_a_few_refusals() -> None:
    election = begin(jitter=0, service_checks=("c",))
    [action] = election.handle(KeyRead(1, 5, None), 0)
    bound = []
    for _ in range(7):
        bound.append(action.service_checks)
        election.handle(Failed(action, CheckNotPassing("500")), 0)
        [read] = election.handle(Ticked(), election.deadline)
        [action] = election.handle(KeyRead(read.number, 5, None), 0)
    assert bound == [("c",)] * 6 + [()]


def test_a_follower_is_suspended_after_a_ttl_without_an_answer() -> None:
    election = begin()
    [read] = election.handle(KeyRead(1, 20, held("x")), 0)
    now = 10.0
    election.handle(Failed(read, DOWN), now)
    assert (election.view.state, election.view.fresh) == (State.FOLLOWER, False)
    while election.view.state is State.FOLLOWER:
        now = election.deadline
        for action in election.handle(Ticked(), now):
            election.handle(Failed(action, DOWN), now)
    assert now == 25
    assert election.view.leader.identity == OTHER.identity


def test_stopping_resigns_only_with_a_session() -> None:
    election = leading()
    assert election.handle(Stopped(), 1) == (Resign("s"),)
    assert election.view.state is State.STOPPED
    assert election.handle(KeyRead(3, 9, None), 1) == ()
    assert election.handle(Ticked(), 99) == ()
    follower = begin()
    follower.handle(KeyRead(1, 20, held("x")), 0)
    assert follower.handle(Stopped(), 1) == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"key": ""},
        {"key": "/spegel"},
        {"key": "spegel/"},
        {"ttl": 0},
        {"ttl": 86401},
        {"lock_delay": 61},
        {"lock_delay": -1},
        {"behavior": "keep"},
        {"wait": 0},
        {"wait": 601},
        {"jitter": -1},
        {"retry": 0},
    ],
)
def test_bad_settings(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        ElectionSettings(**changes)


class AnyOrder(RuleBasedStateMachine):
    """Whatever Consul answers and whenever: one request per lane, never stuck, never leading without a lease."""

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed: int) -> None:
        self.now = 0.0
        self.election = Election(ElectionSettings(), ME, random.Random(seed))
        self.flight: list[Action] = []
        self.sessions = 0
        self.lease_end = -math.inf
        self.feed(Started())

    def feed(self, event: Event) -> None:
        for action in self.election.handle(event, self.now):
            if isinstance(action, ReadKey):
                self.flight = [other for other in self.flight if not isinstance(other, ReadKey)]
            if not isinstance(action, Destroy | Resign):
                self.flight.append(action)

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(100):
            if self.election.deadline > end:
                break
            self.now = max(self.now, self.election.deadline)
            self.feed(Ticked())
        else:
            raise AssertionError("busy loop")
        self.now = end

    @precondition(lambda self: self.flight)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        action = self.flight.pop(data.draw(st.integers(0, len(self.flight) - 1)))
        errors = [DOWN, NotFound("404 page"), InvalidSession("500"), CheckNotPassing("500"), ConsulError("x")]
        if isinstance(action, Renew):
            errors.append(NotFound(f"404 Session id '{action.session}' not found"))
        if error := data.draw(st.none() | st.sampled_from(errors)):
            return self.feed(Failed(action, error))
        match action:
            case ReadKey(number):
                session = f"s{self.sessions}"
                key = data.draw(
                    st.sampled_from([None, free(), free(OTHER), held("x"), held(session, ME), held(session, OTHER)])
                )
                self.feed(KeyRead(number, data.draw(st.integers(0, 50)), key))
            case CreateSession(ttl, _):
                self.sessions += 1
                self.lease_end = self.now + ttl
                self.feed(SessionCreated(f"s{self.sessions}", self.now))
            case Acquire():
                self.feed(Acquired(data.draw(st.booleans())))
            case Renew(session, _):
                if session == f"s{self.sessions}":
                    self.lease_end = self.now + 15
                self.feed(Renewed(session, self.now))
        return None

    @invariant()
    def one_request_per_lane_and_never_stuck(self) -> None:
        main = [action for action in self.flight if not isinstance(action, Renew)]
        assert len(main) <= 1
        assert main or self.election.deadline < math.inf

    @invariant()
    def leads_only_with_a_lease(self) -> None:
        if self.election.view.state is State.LEADER and self.election.deadline > self.now:
            assert self.now < self.lease_end


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
