# Elections in virtual time: who leads, and how the lead changes hands.

from __future__ import annotations

import json

import trio
import trio.testing
from structlog.testing import capture_logs

from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import FLAGS, LeaderRecord
from tests.sim.elections import until, world


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
