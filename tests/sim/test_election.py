# Whole elections in virtual time: many candidates, one fake Consul, faults between them.

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.consul.beacon import Beacon
from spegel_consul.consul.candidate import Candidate
from spegel_consul.consul.catalog import ServiceDefinition, TtlCheck
from spegel_consul.consul.record import FLAGS, LeaderRecord
from spegel_consul.consul.view import ElectionSettings, State
from tests.consul.fakeconsul import FakeConsul


class World:
    """``count`` candidates named n0, n1, …, each with its own link to one Consul."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.consul = FakeConsul(nursery)
        self.candidates: list[Candidate] = []
        self.scopes: list[trio.CancelScope] = []
        self._nursery = nursery

    async def add(self, **settings: Any) -> Candidate:
        return await self._start(len(self.candidates), **settings)

    async def restart(self, candidate: Candidate) -> Candidate:
        """The process of ``candidate`` again, on the same node."""
        return await self._start(self.candidates.index(candidate))

    async def _start(self, number: int, *, beacon: bool = False, **settings: Any) -> Candidate:
        name = f"n{number}"
        me = LeaderRecord(f"peer{number}", (f"/ip4/10.0.0.{number}/tcp/5001/p2p/peer{number}",), node=name)
        election, rng = ElectionSettings(**settings), random.Random(number)
        client = self.consul.client(name)
        service = ServiceDefinition(f"spegel-leader:{name}", "spegel-leader", "10.0.0.1", 5001, (TtlCheck(3.0),))
        light = Beacon(client, service) if beacon else None
        candidate = Candidate(client, me, election, beacon=light, rng=rng)
        scope = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await candidate.run(task_status=task_status)

        await self._nursery.start(run)
        self.candidates.append(candidate)
        self.scopes.append(scope)
        return candidate

    def in_state(self, state: State) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.view.state is state]

    async def leader(self) -> Candidate:
        await until(lambda: self.in_state(State.LEADER))
        return self.in_state(State.LEADER)[0]

    def stop(self, candidate: Candidate) -> None:
        self.scopes[self.candidates.index(candidate)].cancel()

    def agreed(self) -> bool:
        live = [candidate for candidate in self.candidates if candidate.view.state is not State.STOPPED]
        states = [candidate.view.state for candidate in live]
        return (
            states.count(State.LEADER) == 1
            and states.count(State.FOLLOWER) == len(live) - 1
            and len({(c.view.leader.peer_id, c.view.epoch, c.view.session) for c in live}) == 1
            and all(c.view.fresh for c in live)
        )


@asynccontextmanager
async def world(count: int = 0, **settings: object) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        made = World(nursery)
        for _ in range(count):
            await made.add(**settings)
        yield made
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], limit: float = 300.0, step: float = 0.05) -> float:
    """Virtual seconds until ``condition()`` holds."""
    began = trio.current_time()
    with trio.fail_after(limit):
        while not condition():
            await trio.sleep(step)
    return trio.current_time() - began


async def test_one_of_three_leads_and_all_agree(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        took = await until(w.agreed)
        assert took <= 1.2
        leader = await w.leader()
        assert leader.view.leader is leader.me
        assert w.consul.holder() == leader.view.session
        assert w.consul.kv["spegel/leader"]["Flags"] == FLAGS
        assert json.loads(w.consul.value())["state"] == "held"


async def test_followers_hold_no_session(autojump_clock: trio.testing.MockClock) -> None:
    async with world(20) as w:
        await until(w.agreed)
        await trio.sleep(60)
        assert len(w.consul.sessions) == 1
        assert w.consul.calls["PUT session/renew"] <= 24  # of one node in a minute
        assert w.consul.calls["GET status/leader"] <= 20 * 10  # of the others; any server answers them from memory


async def test_nothing_is_written_while_all_is_well(autojump_clock: trio.testing.MockClock) -> None:
    async with world(5) as w:
        await until(w.agreed)
        epoch = w.in_state(State.LEADER)[0].view.epoch
        acquired = w.consul.calls["acquire"]
        await trio.sleep(600)
        assert w.agreed()
        assert w.in_state(State.LEADER)[0].view.epoch == epoch
        assert w.consul.calls["acquire"] == acquired


async def test_stopping_the_leader_hands_over_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with world(5) as w:
        await until(w.agreed)
        old = await w.leader()
        w.stop(old)
        took = await until(lambda: any(c is not old for c in w.in_state(State.LEADER)))
        assert took < 0.7
        assert old.view.state is State.STOPPED
        await until(w.agreed)
        assert len(w.consul.sessions) == 1


async def test_last_one_leaves_a_vacant_mark(autojump_clock: trio.testing.MockClock) -> None:
    async with world(1) as w:
        leader = await w.leader()
        w.stop(leader)
        await until(lambda: not w.consul.sessions)
        assert w.consul.holder() is None
        mark = json.loads(w.consul.value())
        assert (mark["state"], mark["released_by"]) == ("vacant", "n0")
        assert w.consul.value().endswith(b"}\n")
        assert not w.consul.delayed


async def test_partitioned_leader_steps_down_before_another_leads(autojump_clock: trio.testing.MockClock) -> None:
    async with world(5) as w:
        await until(w.agreed)
        old = await w.leader()
        await trio.sleep(33)
        began = trio.current_time()
        w.consul.links[old.me.node] = "cut"
        stepped_down = await until(lambda: old.view.state is State.SUSPENDED)
        assert not w.in_state(State.LEADER)
        assert stepped_down <= 6
        await w.leader()
        # two TTLs after the last renewal, then the lock-delay and the jitter
        assert 15 + 0.5 <= trio.current_time() - began <= 30 + 0.5 + 0.5
        assert not old.view.fresh
        assert old.view.leader is old.me
        assert "connection refused" in old.problem
        del w.consul.links[old.me.node]
        await until(lambda: old.view.state is State.FOLLOWER)
        assert old.view.fresh
        assert old.problem is None
        await until(w.agreed)


async def test_no_overlap_when_a_dead_node_is_noticed_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """serfHealth ends a session long before its TTL: lock-delay and gossip have to cover the rest of the lease."""
    async with world(3) as w:
        await until(w.agreed)
        old = await w.leader()
        renewals = w.consul.calls["PUT session/renew"]
        await until(lambda: w.consul.calls["PUT session/renew"] > renewals, step=0.01)
        w.consul.links[old.me.node] = "cut"
        await trio.sleep(5.5)  # what gossip needs to declare the node failed
        w.consul.invalidate(old.view.session)
        overlap = 0
        while not any(candidate is not old for candidate in w.in_state(State.LEADER)):
            await trio.sleep(0.05)
        while old.view.state is State.LEADER:
            overlap += 1
            await trio.sleep(0.05)
        assert overlap == 0


async def test_rolling_restart_of_fifty(autojump_clock: trio.testing.MockClock) -> None:
    async with world(50) as w:
        await until(w.agreed)
        changes = 0
        for candidate in list(w.candidates):
            changes += candidate.view.state is State.LEADER
            w.stop(candidate)
            await w.add()
            await trio.sleep(20)
            assert w.agreed()
        assert changes >= 1
        assert w.consul.calls["acquire"] <= 3 * (changes + 2)  # no herd: few had to ask
        assert len(w.consul.sessions) == 1


async def test_a_hundred_wake_up_and_few_ask(autojump_clock: trio.testing.MockClock) -> None:
    async with world(100) as w:
        await until(w.agreed)
        before = w.consul.calls["acquire"]
        w.stop(await w.leader())
        await until(w.agreed)
        assert w.consul.calls["acquire"] - before <= 3


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


async def test_operator_destroys_the_session(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        old = await w.leader()
        w.consul.invalidate(w.consul.holder())
        await until(lambda: old.view.state is not State.LEADER, 1)
        assert old.view.leader is old.me  # stays the hint
        assert 0.5 <= await until(w.agreed) <= 0.9


async def test_operator_deletes_the_key(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        w.consul.delete()
        await trio.sleep(0.01)
        assert not w.in_state(State.LEADER)
        assert await until(w.agreed) < 1


async def test_operator_writes_junk_over_the_value(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        leader = await w.leader()
        w.consul.write(b"\xff not json")
        assert await until(lambda: LeaderRecord.parse(w.consul.value())) < 1.1
        await until(w.agreed, 1)
        assert leader.view.state is State.LEADER
        assert LeaderRecord.parse(w.consul.value()).identity == leader.me.identity


async def test_junk_before_the_first_election(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.write(b"[1, 2")
        candidate = await w.add()
        assert await until(lambda: candidate.view.state is State.LEADER) < 1


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
    async with world(2, beacon=True) as w:
        await until(w.agreed)
        known = w.candidates[0].view.leader
        w.consul.links.update(n0=fault, n1=fault, n2=fault)
        late = await w.add(beacon=True)
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


async def test_ttl_below_the_servers_minimum_is_raised(autojump_clock: trio.testing.MockClock) -> None:
    with capture_logs() as logs:
        async with world(1, ttl=5) as w:
            await w.leader()
            assert [session["ttl"] for session in w.consul.sessions.values()] == [10]
    [told] = [line for line in logs if line["event"].startswith("session TTL adjusted")]
    assert (told["asked"], told["used"]) == (5, 10)


async def test_a_killed_process_takes_over_from_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3) as w:
        await until(w.agreed)
        old = await w.leader()
        w.consul.links[old.me.node] = "cut"  # so that it can't resign
        w.stop(old)
        await until(lambda: old.view.state is State.STOPPED)
        del w.consul.links[old.me.node]
        new = await w.restart(old)
        assert await until(w.agreed) < 0.5
        assert not w.consul.delayed
        assert len(w.consul.sessions) == 1
        assert new.view.state in (State.LEADER, State.FOLLOWER)


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
        candidate = await w.add(beacon=True)
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
    async with world(2, beacon=True) as w:
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


async def test_who_may_not_register_leads_without_a_beacon(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as w:
        w.consul.links["n0"] = "no-service"
        with capture_logs() as logs:
            candidate = await w.add(beacon=True)
            await until(lambda: candidate.view.state is State.LEADER, 5)
            await trio.sleep(60)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "the lock does not end with this process: may not register spegel-leader"
        ]


async def test_a_beacon_that_is_denied_on_the_second_try_is_put_out(autojump_clock: trio.testing.MockClock) -> None:
    """And is lit again in the next candidacy, when the token may."""
    async with world(1) as w:
        first = await w.leader()
        candidate = await w.add(beacon=True)
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
    async with world(1, beacon=True) as w:
        await w.leader()
        w.consul.forget_services()
        await until(lambda: w.consul.services, 1)
        await trio.sleep(30)
        assert w.agreed()
        assert w.consul.services


async def test_delete_behavior_recovers_after_the_lock_delay(autojump_clock: trio.testing.MockClock) -> None:
    async with world(3, behavior="delete") as w:
        await until(w.agreed)
        w.consul.invalidate(w.consul.holder())
        await trio.sleep(0.01)
        assert not w.agreed()
        assert 0.4 <= await until(w.agreed) <= 0.9


async def test_changed_returns_the_next_view(autojump_clock: trio.testing.MockClock) -> None:
    async with world(1) as w:
        view = w.candidates[0].view
        seen = [view.state]
        while view.state is not State.LEADER:
            view = await w.candidates[0].changed(view)
            seen.append(view.state)
        assert seen == [State.STARTING, State.CANDIDATE, State.LEADER]


async def test_resigning_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    async with world(1) as w:
        leader = await w.leader()
        w.consul.links["n0"] = "hang"
        began = trio.current_time()
        with capture_logs() as logs:
            w.stop(leader)
            await until(lambda: any("in time" in line["event"] for line in logs), 4)
        assert 2.9 <= trio.current_time() - began <= 3.2
