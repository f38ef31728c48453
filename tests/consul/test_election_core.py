# The election's decisions one by one, without a clock and without a loop.

from __future__ import annotations

import ast
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from spegel_consul.consul import candidate
from spegel_consul.consul.client import KVEntry
from spegel_consul.consul.election import SAFETY, Election
from spegel_consul.consul.errors import (
    AccessDenied,
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
    Probe,
    Probed,
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
from spegel_consul.consul.view import ElectionSettings, State

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


def owning(**changes: object) -> Election:
    """Has a session, has read that the key is still free, and asks for the lock."""
    election = begin(jitter=0, **changes)
    [create] = election.handle(KeyRead(1, 5, None), 0)
    assert isinstance(create, CreateSession)
    election.handle(SessionCreated("s", 0), 0)
    assert election.handle(KeyRead(2, 5, None), 0) == (Acquire("s"),)
    return election


def leading(**changes: object) -> Election:
    election = owning(**changes)
    assert election.handle(Acquired(True), 0) == (ReadKey(3, 0, 60.0, True),)
    assert election.view.state is State.CANDIDATE  # not before it was read back
    [read] = election.handle(KeyRead(3, 9, held("s", ME, 9)), 0)
    assert (read.number, read.index) == (4, 9)
    assert 5 <= read.wait <= 15  # a leader doesn't trust a silent connection for a minute
    assert (election.view.state, election.view.epoch, election.view.leader) == (State.LEADER, 9, ME)
    return election


def test_a_follower_only_reads_and_probes() -> None:
    election = begin()
    assert election.handle(KeyRead(1, 20, held("x")), 0) == (ReadKey(2, 20, 60.0),)
    assert (election.view.state, election.view.session, election.view.fresh) == (State.FOLLOWER, "x", True)
    assert election.view.leader.identity == OTHER.identity
    now = election.deadline
    assert 6.75 <= now <= 7.5
    assert election.handle(Ticked(), now) == (Probe(5.5 / 3),)
    assert election.handle(Probed(Probe(5.5 / 3)), now) == ()
    assert now + 6.75 <= election.deadline <= now + 7.5


def test_a_released_key_is_tried_soon() -> None:
    election = begin()
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, free()), 100)
    assert isinstance(read, ReadKey)
    assert read.index == 30
    assert 0 < read.wait <= 0.3
    assert election.view.leader.identity == OTHER.identity  # stays the hint
    assert election.handle(KeyRead(3, 30, free()), 100.3) == (CreateSession(15),)


@pytest.mark.parametrize(("crowd", "longest"), [(3, 0.12), (50, 2.0), (1000, 4.0)])
def test_the_larger_the_crowd_the_further_it_spreads(crowd: int, longest: float) -> None:
    waits = []
    for seed in range(200):
        election = Election(ElectionSettings(), ME, random.Random(seed))
        election.crowd = crowd
        election.handle(Started(), 0)
        election.handle(KeyRead(1, 20, held("x")), 0)
        [read] = election.handle(KeyRead(2, 30, free()), 100)
        waits.append(read.wait)
    assert 0.8 * longest < max(waits) <= longest
    assert min(waits) < 0.1 * longest


def test_an_abandoned_key_waits_for_the_lock_delay() -> None:
    election = begin(lock_delay=10)
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, free(OTHER)), 100)
    assert 10 <= read.wait <= 10.3
    # a neighbouring write wakes the query: the rest is waited for
    [read] = election.handle(KeyRead(3, 31, free(OTHER)), 105)
    assert 5 <= read.wait <= 5.3


def test_a_key_that_went_away_with_its_session_waits_too() -> None:
    election = begin(lock_delay=10, behavior="delete")
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, None), 100)
    assert 10 <= read.wait <= 10.3
    election = begin(lock_delay=10)
    election.handle(KeyRead(1, 20, held("x")), 0)
    [read] = election.handle(KeyRead(2, 30, None), 100)
    assert read.wait <= 0.3  # deleted by an operator: no delay is running


def test_who_has_just_started_does_not_wait_for_the_lock_delay() -> None:
    election = begin(jitter=0)
    assert election.handle(KeyRead(1, 30, free(OTHER)), 0) == (CreateSession(15),)


@pytest.mark.parametrize("indexes", [range(30, 1000), [30, 20] * 500, [0] * 1000], ids=["moves", "falls", "none"])
def test_a_free_key_whose_index_never_rests_is_not_read_in_a_loop(indexes: Sequence[int]) -> None:
    election = begin(lock_delay=10)
    [read] = election.handle(KeyRead(1, 20, held("x")), 0)
    now, reads = 1.0, 0
    for index in indexes:
        actions = election.handle(KeyRead(read.number, index, free(OTHER)), now)
        while not actions:  # or only a probe was due
            now = election.deadline
            actions = tuple(action for action in election.handle(Ticked(), now) if isinstance(action, ReadKey))
        if isinstance(actions[0], CreateSession):
            break
        [read] = actions
        reads += 1
        now += 0.002
    assert 11 <= now <= 15.5  # and it has its turn all the same
    assert reads <= (now - 1) / 0.2 + 3


def test_who_is_too_late_does_not_even_ask() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 5, None), 0)
    assert election.handle(SessionCreated("s", 0), 0) == (ReadKey(2, 5, 0.005, True),)  # still free?
    assert election.handle(KeyRead(2, 20, held("x")), 0) == (Destroy("s"), ReadKey(3, 20, 60.0))
    assert election.view.state is State.FOLLOWER


def test_the_loser_destroys_its_session() -> None:
    election = owning()
    [read] = election.handle(Acquired(False), 0)
    assert 0.75 <= read.wait <= 1.25
    assert election.handle(KeyRead(3, 20, held("x")), 0) == (Destroy("s"), ReadKey(4, 20, 60.0))
    assert 6.75 <= election.deadline <= 7.5  # probes from now on


def test_refused_by_the_lock_delay_tries_again_with_the_same_session() -> None:
    election = owning()
    election.handle(Acquired(False), 0)
    assert election.handle(KeyRead(3, 5, None), 1.3) == (Acquire("s"),)


def test_the_former_self_hands_over() -> None:
    election = begin()
    assert election.handle(KeyRead(1, 20, held("old", ME)), 0) == (Resign("old"), ReadKey(2, 20, 60.0))
    [read] = election.handle(KeyRead(2, 21, free(index=21)), 0.1)
    assert read.wait <= 0.3
    # only at the start: another one with this identity is left alone
    assert election.handle(KeyRead(3, 22, held("twin", ME)), 0.2) == (ReadKey(4, 22, 60.0),)
    assert election.view.state is State.FOLLOWER


def test_the_same_identity_elsewhere_is_not_the_former_self() -> None:
    twin = LeaderRecord("me", ("/ip4/10.9.9.9/tcp/1/p2p/me",))
    assert begin().handle(KeyRead(1, 20, held("x", twin)), 0) == (ReadKey(2, 20, 60.0),)


@pytest.mark.parametrize(("lock_delay", "lease"), [(0, 5), (0.5, 5.5), (10, 15), (60, 15)])
def test_the_lease_is_what_ttl_and_lock_delay_allow(lock_delay: float, lease: float) -> None:
    election = leading(lock_delay=lock_delay)
    renewal = election.deadline
    assert lease / 2 * 0.9 <= renewal <= lease / 2
    [renew] = election.handle(Ticked(), renewal)
    assert renew == Renew("s", max(lease / 3, 1.0))
    assert election.deadline == lease - SAFETY  # nothing to do but to watch the lease
    assert election.handle(Renewed(renew, renewal), renewal + 0.1) == ()
    assert renewal + lease / 2 * 0.9 <= election.deadline <= renewal + lease / 2


def test_failed_renewals_are_repeated_until_the_lease_ends() -> None:
    election = leading(lock_delay=10)
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


RENEW = Renew("s", 5.5 / 3)


def test_a_renewal_after_failures_abandons_the_read() -> None:
    election = leading()
    assert election.handle(Ticked(), 3) == (RENEW,)
    election.handle(Failed(RENEW, DOWN), 3)
    assert election.handle(Ticked(), 4) == (RENEW,)
    assert election.handle(Renewed(RENEW, 4), 4) == (ReadKey(5, 0, 60.0, True),)
    assert election.handle(KeyRead(4, 9, None), 4) == ()  # the abandoned one's answer
    assert election.view.state is State.LEADER
    assert election.problem is None


def test_a_probe_after_failures_abandons_the_read() -> None:
    election = begin()
    election.handle(KeyRead(1, 20, held("x")), 0)
    [probe] = election.handle(Ticked(), 7.5)
    assert election.handle(Failed(probe, DOWN), 8) == ()
    assert (election.view.state, election.view.fresh) == (State.FOLLOWER, False)
    assert election.problem == "asking for Consul's leader: refused"
    assert election.handle(Ticked(), 9) == (probe,)
    assert election.handle(Probed(probe), 9) == ()
    assert 9 < election.deadline <= 9.3  # as all others, so each at another moment
    assert election.handle(Ticked(), 9.3) == (ReadKey(3, 0, 60.0),)
    election.handle(KeyRead(3, 20, held("x")), 9)
    assert (election.view.state, election.view.fresh, election.problem) == (State.FOLLOWER, True, None)


@pytest.mark.parametrize(("crowd", "pause", "spread"), [(3, 0.7, 0.12), (50, 2, 2), (1000, 5, 4)])
def test_a_crowd_probes_seldom_in_an_outage_and_does_not_come_back_at_once(
    crowd: int, pause: float, spread: float
) -> None:
    election = begin()
    election.crowd = crowd
    election.handle(KeyRead(1, 20, held("x")), 0)
    now, pauses, spreads = 7.5, [], []
    for _ in range(200):
        [probe] = election.handle(Ticked(), now)
        election.handle(Failed(probe, DOWN), now)
        pauses.append(election._heart.deadline - now)
        now = election._heart.deadline
    assert 0.9 * pause < max(pauses) <= pause
    assert sum(pauses) / len(pauses) > 0.4 * pause
    for _ in range(200):
        [probe] = election._heart.beat(now)
        election.handle(Failed(probe, DOWN), now)
        now = election._heart.deadline
        [probe] = election._heart.beat(now)
        election.handle(Probed(probe), now)
        spreads.append(election.deadline - now)
        now = election.deadline
        [read] = election.handle(Ticked(), now)
        election.handle(KeyRead(read.number, 20, held("x")), now)
        now = election._heart.deadline
    assert 0.9 * spread < max(spreads) <= spread
    assert max(pauses[10:]) + max(spreads) < 1 or crowd > 3


def test_an_old_reads_answer_takes_the_place_of_the_one_that_was_to_come() -> None:
    election = begin(jitter=1)
    election.handle(KeyRead(1, 20, held("x")), 0)
    [probe] = election.handle(Ticked(), 7.5)
    election.handle(Failed(probe, DOWN), 7.5)
    [probe] = election.handle(Ticked(), 9)
    election.handle(Probed(probe), 9)
    assert election.deadline <= 9.3
    [read] = election.handle(KeyRead(2, 20, held("x")), 9)
    assert (read.number, read.index) == (3, 20)
    assert election.deadline > 10


def test_a_beat_that_was_overtaken_does_not_matter() -> None:
    election = begin(jitter=0)
    election.handle(KeyRead(1, 20, held("x")), 0)
    [probe] = election.handle(Ticked(), 7.5)
    election.handle(KeyRead(2, 30, free()), 8)
    election.handle(SessionCreated("s", 8), 8)
    assert election.handle(Failed(probe, DOWN), 8) == ()
    assert election.view.fresh
    assert election.deadline <= 11
    assert election.handle(Ticked(), 11) == (RENEW,)


def test_a_suspended_leader_does_not_lead_by_reading_alone() -> None:
    election = leading()
    election.handle(Ticked(), 5.1)
    assert election.view.state is State.SUSPENDED
    election.handle(KeyRead(5, 9, held("s", ME, 9)), 6)
    assert election.view.state is State.SUSPENDED
    [read] = election.handle(Renewed(RENEW, 7), 7)
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 7)
    assert election.view.state is State.LEADER


def test_a_clock_that_jumped_ahead_ends_the_lead_at_once() -> None:
    """A machine that slept: everything else may have happened meanwhile."""
    election = leading()
    actions = election.handle(Ticked(), 3600)
    assert actions == (RENEW, ReadKey(5, 0, 60.0, True))
    assert election.view.state is State.SUSPENDED
    gone = NotFound("404 Session id 's' not found")
    election.handle(Failed(RENEW, gone), 3600)
    election.handle(KeyRead(6, 50, held("x", OTHER, 50)), 3600)
    assert (election.view.state, election.view.epoch) == (State.FOLLOWER, 50)


def test_only_consuls_own_404_ends_the_session() -> None:
    election = leading()
    election.handle(Ticked(), 3)
    assert election.handle(Failed(RENEW, NotFound("404 <html>")), 3) == ()
    assert election.view.state is State.LEADER
    election.handle(Ticked(), 4)
    gone = NotFound("404 Session id 's' not found")
    assert election.handle(Failed(RENEW, gone), 4) == (ReadKey(5, 0, 60.0, True),)
    assert (election.view.state, election.view.session) == (State.SUSPENDED, None)
    # without its session the lock is free
    assert election.handle(KeyRead(5, 50, free(ME, 50)), 4) != ()
    assert election.view.state is State.CANDIDATE
    assert election.handle(Stopped(), 4) == ()


def test_servers_that_have_not_caught_up_end_no_session() -> None:
    """Right after an election of theirs, a renewal may be told "not found" by a leader whose memory is still empty."""
    election = leading()
    election.handle(Ticked(), 3)
    election.handle(Failed(RENEW, NotFound("404 Session id 's' not found")), 3)
    assert election.handle(KeyRead(5, 9, held("s", ME, 9)), 3.1)[0] == ReadKey(6, 9, 5.5, True)
    assert election.view.state is State.LEADER
    [renewal, *_] = election.handle(Ticked(), 4)
    assert renewal == RENEW


def test_any_404_ends_the_session_once_its_ttl_is_over() -> None:
    election = leading()
    election.handle(Ticked(), 15)
    [read] = election.handle(Failed(RENEW, NotFound("404 <html>")), 16)
    assert isinstance(read, ReadKey)


def test_invalid_session_while_acquiring_starts_over() -> None:
    election = owning()
    assert election.handle(Failed(Acquire("s"), InvalidSession("500")), 0) == ()
    assert election.handle(Ticked(), election.deadline) == (ReadKey(3, 0, 60.0),)
    assert election.handle(KeyRead(3, 5, None), 1) == (CreateSession(15),)


def test_an_acquire_whose_answer_was_lost_is_found_by_reading() -> None:
    election = owning()
    election.handle(Failed(Acquire("s"), DOWN), 2)
    actions = election.handle(Ticked(), 2.6)
    [read] = [action for action in actions if isinstance(action, ReadKey)]
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 2.6)
    assert election.view.state is State.LEADER


def test_deposed_while_the_session_lives() -> None:
    election = leading()
    assert election.handle(KeyRead(4, 40, held("x", OTHER, 40)), 1) == (Destroy("s"), ReadKey(5, 40, 60.0))
    assert election.view.state is State.FOLLOWER


@pytest.mark.parametrize(("ttl", "allowed"), [(5, 30.0), (600, 300.0)])
def test_a_ttl_outside_the_limits_is_adjusted(ttl: float, allowed: float) -> None:
    election = begin(jitter=0, ttl=ttl)
    election.handle(KeyRead(1, 5, None), 0)
    election.handle(Failed(CreateSession(ttl), InvalidSessionTTL("500", 30.0, 300.0)), 0)
    actions = election.handle(Ticked(), 1)
    assert election.handle(KeyRead(actions[-1].number, 5, None), 1) == (CreateSession(allowed),)
    assert election.ttl == allowed


@pytest.mark.parametrize("refused", [CreateSession(15), Acquire("s")])
def test_a_token_that_may_not_lead_follows(refused: CreateSession | Acquire) -> None:
    election = owning() if isinstance(refused, Acquire) else begin(jitter=0)
    if isinstance(refused, CreateSession):
        assert election.handle(KeyRead(1, 5, None), 0) == (refused,)
    actions = election.handle(Failed(refused, AccessDenied("403 Permission denied")), 0)
    read = actions[-1]
    assert actions[:-1] == ((Destroy("s"),) if isinstance(refused, Acquire) else ())
    assert isinstance(read, ReadKey)
    assert (read.index, 15 <= read.wait <= 25) == (5, True)
    assert election.denied.endswith("403 Permission denied")
    assert election.problem == election.denied
    # another leads: followed at once
    [wait] = election.handle(KeyRead(read.number, 20, held("x")), 1)
    assert (election.view.state, election.problem) == (State.FOLLOWER, None)
    # free again: not tried before the time is up, and then with success
    [read] = election.handle(KeyRead(wait.number, 30, free()), 5)
    assert 10 <= read.wait <= 20
    assert election.handle(KeyRead(read.number, 30, free()), 25) == (CreateSession(15),)
    election.handle(SessionCreated("t", 25), 25)
    assert election.denied is not None
    election.handle(Acquired(True), 25)
    assert election.denied is None


def test_a_follower_is_suspended_after_a_ttl_without_an_answer() -> None:
    election = begin()
    [read] = election.handle(KeyRead(1, 20, held("x")), 0)
    now = 0.0
    while election.view.state is State.FOLLOWER:  # the read hangs, the probes fail
        now = election.deadline
        for action in election.handle(Ticked(), now):
            election.handle(Failed(action, DOWN), now)
    assert now == 15
    assert election.view.leader.identity == OTHER.identity
    assert not election.view.fresh
    assert election.handle(Failed(read, DOWN), now) == ()
    assert election.handle(Ticked(), 30)[-1] == ReadKey(3, 0, 60.0)


def test_stopping_resigns_only_with_a_session() -> None:
    election = leading()
    assert election.handle(Stopped(), 1) == (Resign("s"),)
    assert election.view.state is State.STOPPED
    assert election.handle(KeyRead(4, 9, None), 1) == ()
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
        {"denied_retry": 0},
    ],
)
def test_bad_settings(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        ElectionSettings(**changes)


def test_no_decision_reads_the_wall_clock() -> None:
    """So it may jump as it likes: what is decided goes by Trio's clock, and dates are only ever written."""
    readers = {}
    for path in Path(candidate.__file__).parent.glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
        if names & {"time", "datetime"}:
            readers[path.name] = path.read_text().count("datetime.")
    assert readers == {"candidate.py": 1}  # the date in a record


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
            case CreateSession(ttl):
                self.sessions += 1
                self.lease_end = self.now + min(ttl, 5.5)
                self.feed(SessionCreated(f"s{self.sessions}", self.now))
            case Acquire():
                self.feed(Acquired(data.draw(st.booleans())))
            case Renew(session, _):
                if session == f"s{self.sessions}":
                    self.lease_end = self.now + 5.5
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


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
