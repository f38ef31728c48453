"""The decisions of the election, one by one, without a clock and without an event loop."""

from __future__ import annotations

import ast
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    ConsulTimeout,
    InvalidSession,
    InvalidSessionTTL,
)
from spegel_consul.consul.consul_lock import RULES
from spegel_consul.election import candidate
from spegel_consul.election.election_events import (
    Acquire,
    Acquired,
    CreateSession,
    Destroy,
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
from spegel_consul.election.election_view import ElectionSettings, State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import SessionEnded
from spegel_consul.election.state_machine import SAFETY, Election
from spegel_consul.join.sources.nomad_lock import RULES as UNSEEN
from tests.election.electing import ME, OTHER, begin, free, held, leading, owning


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


@pytest.mark.parametrize(("cluster_size", "longest"), [(3, 0.12), (50, 2.0), (1000, 4.0)])
def test_the_larger_the_cluster_the_further_it_spreads(cluster_size: int, longest: float) -> None:
    waits = []
    for seed in range(200):
        election = Election(ElectionSettings(), RULES, ME, random.Random(seed))
        election.cluster_size = cluster_size
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


def test_a_node_that_has_just_started_does_not_wait_for_the_lock_delay() -> None:
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
    assert 11 <= now <= 15.5  # and its attempt comes all the same
    assert reads <= (now - 1) / 0.2 + 3


def test_a_node_that_is_too_late_sends_no_acquire() -> None:
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


def test_a_lock_that_is_held_is_no_problem_though_the_answer_was_lost() -> None:
    election = owning()
    actions = election.handle(Failed(Acquire("s"), ConsulTimeout("no answer within 10 s")), 0)
    while not any(isinstance(each, ReadKey) for each in actions):
        actions = election.handle(Ticked(), election.deadline)
    [read] = [each for each in actions if isinstance(each, ReadKey)]
    assert election.problem is not None
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 1)
    assert election.view.state is State.LEADER
    assert election.problem is None


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
    secondary = LeaderRecord("me", ("/ip4/10.9.9.9/tcp/1/p2p/me",))
    assert begin().handle(KeyRead(1, 20, held("x", secondary)), 0) == (ReadKey(2, 20, 60.0),)


def unseen(value: KVEntry | None) -> tuple[Election, ReadKey]:
    """An election at a store that does not show who holds its lock, which has answered with ``value``."""
    election = Election(ElectionSettings(jitter=0, lock_delay=10), UNSEEN, ME, random.Random(1))
    [first] = election.handle(Started(), 0)
    [read] = election.handle(KeyRead(first.number, 20, value), 0)
    return election, read


def test_a_lock_that_only_seems_to_be_held_is_tried_about_once_a_minute() -> None:
    election, read = unseen(held("dead"))
    assert 30 <= read.wait <= 60
    assert election.handle(KeyRead(2, 20, held("dead")), 29)[0].wait < 60
    assert election.view.state is State.FOLLOWER
    assert election.handle(KeyRead(3, 20, held("dead")), 90) == (CreateSession(15),)
    [again] = election.handle(SessionCreated("s", 90), 90)
    assert election.handle(KeyRead(again.number, 20, held("dead")), 90.1) == (Acquire("s"),)
    [after] = election.handle(Acquired(False), 90.2)
    [destroy, read] = election.handle(KeyRead(after.number, 20, held("dead")), 91)
    assert destroy == Destroy("s")
    assert 30 <= read.wait <= 60  # not again before another minute


def test_a_new_holder_has_a_minute_of_its_own() -> None:
    election, _ = unseen(held("dead"))
    [read] = election.handle(KeyRead(2, 21, held("new", index=21)), 89)
    assert 30 <= read.wait <= 60


def test_where_a_refusal_is_a_write_the_pauses_grow() -> None:
    election = Election(ElectionSettings(jitter=0, lock_delay=10), UNSEEN, ME, random.Random(1))
    election.handle(Started(), 0)
    [create] = election.handle(KeyRead(1, 20, free()), 0)
    assert create == CreateSession(15)
    [read] = election.handle(SessionCreated("s", 0), 0)
    now, tries = 0.0, 0
    while now < 300:
        actions = election.handle(KeyRead(read.number, 20, free()), now)
        if actions == (Acquire("s"),):
            tries += 1
            actions = election.handle(Acquired(False), now)
        while not (reads := [action for action in actions if isinstance(action, ReadKey)]):
            now = election.deadline
            actions = election.handle(Ticked(), now)
        [read] = reads
        now += read.wait
    assert 10 <= tries <= 40


def test_a_lock_whose_id_is_not_shown_is_not_handed_over() -> None:
    _, read = unseen(held("old", ME))
    assert isinstance(read, ReadKey)


def test_without_probes_a_silent_read_is_no_outage() -> None:
    election, _ = unseen(held("x"))
    assert election.deadline == 60 + 15  # nothing but the end of the read, and a TTL
    assert election.handle(Ticked(), election.deadline) == ()
    assert election.view.state is State.SUSPENDED


def test_an_ended_session_ends_the_lead_at_once_where_no_read_would_tell() -> None:
    election = leading(UNSEEN)
    renewal = election.deadline
    [renew] = election.handle(Ticked(), renewal)
    [read] = election.handle(Failed(renew, SessionEnded("409")), renewal)
    assert isinstance(read, ReadKey)
    assert election.view.state is State.SUSPENDED


def test_the_lead_outlasts_a_renewal_that_says_so_where_a_read_tells() -> None:
    election = leading()
    renewal = election.deadline
    [renew] = election.handle(Ticked(), renewal)
    assert election.handle(Failed(renew, SessionEnded("500: invalid session cookie")), renewal) == ()
    assert election.view.state is State.LEADER
    assert "invalid session cookie" in (election.problem or "")


@pytest.mark.parametrize(("lock_delay", "lease"), [(0, 5), (0.5, 5.5), (10, 15), (60, 15)])
def test_the_lease_follows_from_ttl_and_lock_delay(lock_delay: float, lease: float) -> None:
    election = leading(lock_delay=lock_delay)
    renewal = election.deadline
    assert lease / 2 * 0.9 <= renewal <= lease / 2
    [renew] = election.handle(Ticked(), renewal)
    assert renew == Renew("s", max(lease / 3, 1.0))
    assert election.deadline == lease - SAFETY  # nothing to do but to watch the lease
    assert election.handle(Renewed(renew, renewal), renewal + 0.1) == ()
    assert renewal + lease / 2 * 0.9 <= election.deadline <= renewal + lease / 2


def test_invalid_session_while_acquiring_starts_over() -> None:
    election = owning()
    assert election.handle(Failed(Acquire("s"), InvalidSession("500")), 0) == ()
    assert election.handle(Ticked(), election.deadline) == (ReadKey(3, 0, 60.0),)
    assert election.handle(KeyRead(3, 5, None), 1) == (CreateSession(15),)


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
    assert readers == {"leader_record.py": 1}  # the date in a record
