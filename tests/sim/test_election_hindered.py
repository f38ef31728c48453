# Elections in virtual time: agents, servers, tokens and checks that stand in the way.

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import LeaderRecord
from tests.sim.elections import until, world


async def test_agent_is_away_at_start(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.links["n0"] = "cut"
        candidate = await w.add()
        await trio.sleep(120)
        assert candidate.view.state is State.STARTING
        assert "refused" in candidate.problem
        del w.consul.links["n0"]
        assert await until(lambda: candidate.view.state is State.LEADER) < 13  # back-off cap, then jitter
        assert candidate.problem is None


async def test_short_outage_changes_nothing_but_freshness(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        leader = await w.leader()
        before = leader.view
        for node in ("n0", "n1", "n2"):
            w.consul.links[node] = "no-leader"
        await trio.sleep(9)
        w.consul.links.clear()
        await until(w.agreed, 20)
        assert leader.view == before


async def test_quorum_loss_suspends_all_and_the_old_leader_resumes(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        leader = await w.leader()
        epoch = leader.view.epoch
        for session in w.consul.sessions.values():
            session["expires"] += 100  # the servers' timers stand still without a leader
        for node in ("n0", "n1", "n2"):
            w.consul.links[node] = "cut"
        await trio.sleep(1)
        w.consul.links.update(dict.fromkeys(("n0", "n1", "n2"), "no-leader"))
        # a blocking query that hangs tells a follower nothing until it ends
        await until(lambda: leader.view.state is State.SUSPENDED, 16)
        await until(lambda: len(w.in_state(State.SUSPENDED)) == 3, 60 + 4 + 5 + 16)
        for candidate in w.candidates:
            assert candidate.view.leader.peer_id == leader.me.peer_id
            assert not candidate.view.fresh
        w.consul.links.clear()
        await until(w.agreed, 15)
        assert leader.view.state is State.LEADER
        assert leader.view.epoch == epoch


async def test_half_dead_long_poll_is_abandoned(autojump_clock: trio.testing.MockClock) -> None:
    """The connection of the long poll hangs for ever; a renewal that works again must not wait for it."""
    async with world(1) as w:
        leader = await w.leader()
        await trio.sleep(20)
        w.consul.links["n0"] = "hang"
        await until(lambda: leader.view.state is State.SUSPENDED, 16)
        w.consul.sessions[w.consul.holder()]["expires"] += 100
        del w.consul.links["n0"]
        assert await until(lambda: leader.view.state is State.LEADER) < 8


async def test_a_proxys_404_is_neither_a_lock_nor_a_lost_session(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.links["n0"] = "proxy404"
        first = await w.add()
        await trio.sleep(30)
        assert first.view.state is State.STARTING
        w.consul.links.clear()
        await until(lambda: first.view.state is State.LEADER)
        session = first.view.session
        w.consul.links["n0"] = "proxy404"
        await trio.sleep(9)
        assert "404" in first.problem
        w.consul.links.clear()
        await until(lambda: first.view.fresh and first.problem is None)
        assert (first.view.state, first.view.session) == (State.LEADER, session)


async def test_a_read_only_token_is_reported_once(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.links["n0"] = "read-only"
        with capture_logs() as logs:
            candidate = await w.add()
            await trio.sleep(300)
            assert candidate.view.state is State.CANDIDATE
            assert candidate.problem == "creating a session: 403 Permission denied"
            assert w.consul.calls["PUT session/create"] == 0  # refused before it is counted
            leader = await w.add()
            await until(lambda: candidate.view.state is State.FOLLOWER)
            assert candidate.problem is None
            w.stop(leader)
            await trio.sleep(300)
            assert candidate.view.leader.peer_id == leader.me.peer_id
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "following only: this token may not lead"
        ]
        w.consul.links.clear()  # the token is replaced by a better one
        assert await until(lambda: candidate.view.state is State.LEADER) <= 26
        assert candidate.problem is None


@pytest.mark.parametrize("fault", ["cut", "hang", "proxy404", "html", "denied", "no-leader"])
async def test_whatever_consul_says_nothing_is_lost(autojump_clock: trio.testing.MockClock, fault: str) -> None:
    """For the whole cluster and for long, so that the session ends, and from the start."""
    async with world(2, leader_service=True) as w:
        await until(w.agreed)
        known = w.candidates[0].view.leader
        w.consul.links.update(n0=fault, n1=fault, n2=fault)
        late = await w.add(leader_service=True)
        await trio.sleep(200)
        for candidate in w.candidates[:2]:
            assert candidate.view.state is State.SUSPENDED
            assert candidate.view.leader.identity == known.identity
            assert candidate.problem
        assert late.view.state is State.STARTING
        w.consul.links.clear()
        assert await until(w.agreed) < 30
        await until(lambda: not any(candidate.problem for candidate in w.candidates), 10)


async def test_a_denied_token_keeps_what_is_known(autojump_clock: trio.testing.MockClock) -> None:
    async with world(2) as w:
        await until(w.agreed)
        follower = w.in_state(State.FOLLOWER)[0]
        leader = await w.leader()
        w.consul.links[follower.me.node] = "denied"
        w.consul.write(w.consul.value() + b"\n")  # ends the long poll; the next one is denied
        await until(lambda: follower.view.state is State.SUSPENDED, 30)
        assert follower.view.leader.peer_id == leader.me.peer_id
        assert follower.problem == "reading spegel/leader: 403 Permission denied"
        w.consul.links.clear()
        await until(w.agreed, 15)


async def test_a_follower_notices_a_hanging_agent(autojump_clock: trio.testing.MockClock) -> None:
    """Its long poll would say nothing for a minute, and a renewal it has none."""
    async with world(2) as w:
        await until(w.agreed)
        [follower] = w.in_state(State.FOLLOWER)
        before = follower.view
        w.consul.links[follower.me.node] = "hang"
        assert await until(lambda: not follower.view.fresh) <= 7.5 + 5
        assert await until(lambda: follower.view.state is State.SUSPENDED) <= 15
        w.consul.links.clear()
        assert await until(lambda: follower.view == before) <= 6  # the probe in flight ends first


async def test_a_check_that_never_passes_does_not_prevent_a_leader(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.checks_passing = False
        candidate = await w.add(leader_service=True)
        assert 2 < await until(lambda: candidate.view.state is State.LEADER) < 3
        assert w.consul.calls["PUT session/create"] <= 12


async def test_a_node_that_fails_asks_for_no_session_in_a_loop(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.links["n0"] = "node-critical"
        candidate = await w.add()
        await trio.sleep(60)
        assert w.consul.calls["PUT session/create"] <= 30
        assert "serfHealth" in candidate.problem
        w.consul.links.clear()
        await until(lambda: candidate.view.state is State.LEADER, 20)


async def test_the_lock_ends_soon_after_a_process_that_hangs(autojump_clock: trio.testing.MockClock) -> None:
    async with world(2, leader_service=True) as w:
        await until(w.agreed)
        old = await w.leader()
        [other] = w.in_state(State.FOLLOWER)
        assert list(w.consul.services) == [f"spegel-leader:{old.me.node}"]
        await trio.sleep(60)
        assert w.agreed()
        w.consul.links[old.me.node] = "hang"
        assert await until(lambda: other.view.state is State.LEADER) <= 4
        w.consul.links.clear()
        await until(w.agreed)
        assert old.view.state is State.FOLLOWER
        await until(lambda: list(w.consul.services) == [f"spegel-leader:{other.me.node}"], 10)
        before = other.view
        await trio.sleep(60)
        assert w.agreed()
        assert other.view == before


async def test_a_node_that_may_not_register_leads_without_a_leader_service(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as w:
        w.consul.links["n0"] = "no-service"
        with capture_logs() as logs:
            candidate = await w.add(leader_service=True)
            await until(lambda: candidate.view.state is State.LEADER, 5)
            await trio.sleep(60)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "the lock does not end with this process: may not register spegel-leader"
        ]


async def test_a_leader_service_that_is_denied_on_the_second_try_is_deregistered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is registered again in the next candidacy, when the token may."""
    async with world(1) as w:
        first = await w.leader()
        candidate = await w.add(leader_service=True)
        w.consul.links["n1"] = "no-session"
        w.stop(first)
        await until(lambda: "spegel-leader:n1" in w.consul.services, 10)
        w.consul.links["n1"] = "no-service"
        with capture_logs() as logs:
            await until(lambda: candidate.view.state is State.LEADER, 20)
            await trio.sleep(30)
        warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
        assert warnings.count("the lock does not end with this process: may not register spegel-leader") == 1
        passes = w.consul.calls["PUT agent/check"]
        await trio.sleep(30)
        assert w.consul.calls["PUT agent/check"] == passes
        w.consul.links.clear()
        w.consul.invalidate(candidate.view.session)
        await until(lambda: w.consul.calls["PUT agent/check"] > passes, 30)
        await until(lambda: candidate.view.state is State.LEADER, 20)
        assert w.consul.sessions[candidate.view.session]["ServiceChecks"]


async def test_an_agent_that_forgot_is_told_again(autojump_clock: trio.testing.MockClock) -> None:
    async with world(1, leader_service=True) as w:
        await w.leader()
        w.consul.forget_services()
        await until(lambda: w.consul.services, 1)
        await trio.sleep(30)
        assert w.agreed()
        assert w.consul.services


LOST = "this machine has lost 10.0.0.7, which this node advertises"


async def test_a_leader_that_must_not_lead_hands_over(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3, leader_service=True) as w:
        await until(w.agreed)
        old = await w.leader()
        with capture_logs() as logs:
            w.obstacles[old.me.node].set(LOST)
            assert await until(lambda: any(c is not old for c in w.in_state(State.LEADER))) < 0.7
        assert [line["reason"] for line in logs if line["event"] == "handing over the lead"] == [LOST]
        await until(w.agreed, 1)
        new = await w.leader()
        assert old.view.leader.identity == new.me.identity
        assert len(w.consul.sessions) == 1
        await until(lambda: list(w.consul.services) == [f"spegel-leader:{new.me.node}"], 10)
        w.obstacles[old.me.node].set(None)
        before = new.view
        await trio.sleep(600)
        assert w.agreed()
        assert new.view == before  # it stands again, and that is no reason for another election
        w.stop(new)
        [third] = set(w.candidates) - {old, new}
        w.stop(third)
        await until(lambda: old.view.state is State.LEADER, 2)


async def test_the_only_node_leaves_the_lead_vacant_until_it_may_lead(autojump_clock: trio.testing.MockClock) -> None:
    async with world(1, leader_service=True) as w:
        only = await w.leader()
        w.obstacles["n0"].set(LOST)
        await until(lambda: not w.consul.sessions, 1)
        acquired, read = w.consul.calls["acquire"], w.consul.calls["GET kv"]
        w.obstacles["n0"].set(LOST + ", and more")
        await trio.sleep(600)
        assert LeaderRecord.parse(w.consul.value()) is None
        assert not w.consul.delayed
        assert not w.consul.services
        assert (only.view.state, only.view.session, only.problem) == (State.FOLLOWER, None, None)
        assert w.consul.calls["acquire"] == acquired
        assert w.consul.calls["GET kv"] <= read + 600 / 50, "it asks for a free key again and again"
        assert not w.consul.sessions
        w.obstacles["n0"].set(None)
        assert await until(lambda: only.view.state is State.LEADER) < 1
        assert list(w.consul.services) == ["spegel-leader:n0"]


async def test_a_node_that_must_not_lead_does_not_stand(autojump_clock: trio.testing.MockClock) -> None:
    async with world(2) as w:
        await until(w.agreed)
        [follower] = w.in_state(State.FOLLOWER)
        w.obstacles[follower.me.node].set(LOST)
        leader = await w.leader()
        w.stop(leader)
        await trio.sleep(120)
        assert follower.view.state is State.FOLLOWER
        assert w.consul.holder() is None
        again = await w.restart(leader)
        assert await until(lambda: again.view.state is State.LEADER) < 1


async def test_a_leader_that_must_not_lead_hands_over_after_an_outage(autojump_clock: trio.testing.MockClock) -> None:
    async with world(2) as w:
        await until(w.agreed)
        old = await w.leader()
        [other] = w.in_state(State.FOLLOWER)
        w.consul.links[old.me.node] = "cut"
        w.obstacles[old.me.node].set(LOST)
        await until(lambda: old.view.state is State.SUSPENDED, 6)
        del w.consul.links[old.me.node]
        await until(lambda: other.view.state is State.LEADER, 12)
        await until(w.agreed, 1)


async def test_a_release_that_fails_leaves_the_lock_to_its_session(autojump_clock: trio.testing.MockClock) -> None:
    async with world(2) as w:
        await until(w.agreed)
        old = await w.leader()
        [other] = w.in_state(State.FOLLOWER)
        w.consul.links[old.me.node] = "no-release"
        w.obstacles[old.me.node].set(LOST)
        await until(lambda: other.view.state is State.LEADER, 32)
        assert old.view.state is State.FOLLOWER
