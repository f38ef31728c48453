"""The election with any answers in any order."""

from __future__ import annotations

import math
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spegel_consul.consul import consul_lock
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    CheckNotPassing,
    ConsulError,
    InvalidSession,
    NotFound,
)
from spegel_consul.election.election_events import (
    Acquire,
    Acquired,
    Action,
    CreateSession,
    Destroy,
    Eligibility,
    Event,
    Failed,
    KeyRead,
    Probe,
    Probed,
    ReadKey,
    Renew,
    Renewed,
    Resign,
    SessionCreated,
    Started,
    Ticked,
)
from spegel_consul.election.election_view import ElectionSettings, State
from spegel_consul.election.lock_store import LockRules, SessionEnded
from spegel_consul.election.state_machine import Election
from spegel_consul.join.sources import nomad_lock
from tests.election.electing import DOWN, ME, OTHER, free, held


class AnyOrder(RuleBasedStateMachine):
    """Whatever Consul answers and whenever: one request per lane, never stuck, never leading without a lease."""

    @initialize(seed=st.integers(0, 1000), rules=st.sampled_from([consul_lock.RULES, nomad_lock.RULES]))
    def start(self, seed: int, rules: LockRules) -> None:
        self.now = 0.0
        self.lease = min(15.0, 0.5 + rules.ends_early)
        self.election = Election(ElectionSettings(), rules, ME, random.Random(seed))
        self.flight: list[Action] = []
        self.sessions = 0
        self.lease_end = -math.inf
        self.eligible = True
        self.feed(Started())

    def feed(self, event: Event) -> None:
        for action in self.election.handle(event, self.now):
            if isinstance(action, ReadKey):
                self.flight = [other for other in self.flight if not isinstance(other, ReadKey)]
            if not isinstance(action, Destroy | Resign):
                self.flight.append(action)
            assert self.eligible or not isinstance(action, Acquire | CreateSession)

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

    @rule(eligible=st.booleans())
    def may_lead(self, eligible: bool) -> None:
        self.eligible = eligible
        self.feed(Eligibility(eligible))

    @precondition(lambda self: self.flight)
    @rule(data=st.data())
    def answered(self, data: st.DataObject) -> None:
        action = self.flight.pop(data.draw(st.integers(0, len(self.flight) - 1)))
        errors = [DOWN, NotFound("404 page"), InvalidSession("500"), CheckNotPassing("500"), ConsulError("x")]
        if isinstance(action, Renew):
            errors += [NotFound(f"404 Session id '{action.session}' not found"), SessionEnded("409")]
        if isinstance(action, CreateSession | Acquire):
            errors.append(AccessDenied("403"))
        if error := data.draw(st.none() | st.sampled_from(errors)):
            return self.feed(Failed(action, error))
        match action:
            case ReadKey(number):
                session = f"s{self.sessions}"
                key = data.draw(
                    st.sampled_from([None, free(), free(OTHER), held("x"), held(session, ME), held(session, OTHER)])
                )
                self.feed(KeyRead(number, data.draw(st.integers(0, 50)), key))
                assert self.eligible or self.election.view.state is State.FOLLOWER
            case CreateSession():
                self.sessions += 1
                self.lease_end = self.now + self.lease
                self.feed(SessionCreated(f"s{self.sessions}", self.now))
            case Acquire():
                self.feed(Acquired(data.draw(st.booleans())))
            case Renew(session, _):
                if session == f"s{self.sessions}":
                    self.lease_end = self.now + self.lease
                self.feed(Renewed(action, self.now))
            case Probe():
                self.feed(Probed(action))
        return None

    @invariant()
    def one_request_per_lane_and_never_stuck(self) -> None:
        main = [action for action in self.flight if not isinstance(action, Renew | Probe)]
        assert len(main) <= 1
        assert main or self.election.deadline < math.inf

    @invariant()
    def leads_only_with_a_lease(self) -> None:
        if self.election.view.state is State.LEADER and self.election.deadline > self.now:
            assert self.now < self.lease_end


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40)
TestAnyOrder = AnyOrder.TestCase
