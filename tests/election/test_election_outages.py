"""The lead and the view of it while Consul answers wrongly or not at all, without a clock."""

from __future__ import annotations

import pytest

from spegel_consul.consul.api.consul_errors import NotFound
from spegel_consul.election.election_events import (
    Acquire,
    Failed,
    KeyRead,
    Probed,
    ReadKey,
    Renew,
    Renewed,
    SessionCreated,
    Stopped,
    Ticked,
)
from spegel_consul.election.election_view import State
from spegel_consul.election.state_machine import SAFETY
from tests.election.electing import DOWN, ME, OTHER, begin, free, held, leading, owning


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
    assert election.problem == "asking for the servers' leader: refused"
    assert election.handle(Ticked(), 9) == (probe,)
    assert election.handle(Probed(probe), 9) == ()
    assert 9 < election.deadline <= 9.3  # as all others, so each at another moment
    assert election.handle(Ticked(), 9.3) == (ReadKey(3, 0, 60.0),)
    election.handle(KeyRead(3, 20, held("x")), 9)
    assert (election.view.state, election.view.fresh, election.problem) == (State.FOLLOWER, True, None)


@pytest.mark.parametrize(("cluster_size", "pause", "spread"), [(3, 0.7, 0.12), (50, 2, 2), (1000, 5, 4)])
def test_a_large_cluster_probes_seldom_in_an_outage_and_does_not_come_back_at_once(
    cluster_size: int, pause: float, spread: float
) -> None:
    election = begin()
    election.cluster_size = cluster_size
    election.handle(KeyRead(1, 20, held("x")), 0)
    now, pauses, spreads = 7.5, [], []
    for _ in range(200):
        [probe] = election.handle(Ticked(), now)
        election.handle(Failed(probe, DOWN), now)
        pauses.append(election._heartbeat.deadline - now)
        now = election._heartbeat.deadline
    assert 0.9 * pause < max(pauses) <= pause
    assert sum(pauses) / len(pauses) > 0.4 * pause
    for _ in range(200):
        [probe] = election._heartbeat.beat(now)
        election.handle(Failed(probe, DOWN), now)
        now = election._heartbeat.deadline
        [probe] = election._heartbeat.beat(now)
        election.handle(Probed(probe), now)
        spreads.append(election.deadline - now)
        now = election.deadline
        [read] = election.handle(Ticked(), now)
        election.handle(KeyRead(read.number, 20, held("x")), now)
        now = election._heartbeat.deadline
    assert 0.9 * spread < max(spreads) <= spread
    assert max(pauses[10:]) + max(spreads) < 1 or cluster_size > 3


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
    assert election.problem == "renewing the session: 404 Session id 's' not found", "for the log"
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


def test_an_acquire_whose_answer_was_lost_is_found_by_reading() -> None:
    election = owning()
    election.handle(Failed(Acquire("s"), DOWN), 2)
    actions = election.handle(Ticked(), 2.6)
    [read] = [action for action in actions if isinstance(action, ReadKey)]
    election.handle(KeyRead(read.number, 9, held("s", ME, 9)), 2.6)
    assert election.view.state is State.LEADER


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
