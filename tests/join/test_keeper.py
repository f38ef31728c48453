import itertools
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio
from fakes.memory_router import MemoryRing, MemoryRouter
from join.keeping import Named, Recorder, keep, other, ring_of, start, waits
from trio.testing import MockClock

from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.join.remembered_members import PEERS_FILE, Remembered
from spegel_consul.join.schedule import EVERY
from spegel_consul.peers import PeerInfo, RingError


async def test_it_joins_at_once_and_then_every_half_hour(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    keeper = await start(nursery, router, Named(friend.me))
    await trio.sleep(0.01)
    assert len(router.times) == 1
    assert router.members() == (friend.me,)
    await trio.sleep(3 * EVERY + 30)
    assert len(router.times) == 4
    assert (keeper.rejoins, keeper.last_error) == (3, None)


async def test_a_single_node_is_no_failure(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    router = Recorder(MemoryRing())
    with structlog.testing.capture_logs() as logs:
        keeper = await start(nursery, router, Named())
        await trio.sleep(EVERY * 3)
        keeper._bootstrap.name(router.me, PeerInfo(None, router.me.addrs))
        await trio.sleep(EVERY * 3)
    assert router.times == []
    assert logs == []
    assert keeper.last_error is None


async def test_it_tries_until_a_peer_answers(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, late = Recorder(ring), MemoryRouter(ring, registry=("127.0.0.1", 2))
    bootstrap = Named(late.me)
    with structlog.testing.capture_logs() as logs:
        keeper = await start(nursery, router, bootstrap)
        bootstrap.problem = "the catalog is stale"
        await trio.sleep(120)
        gaps = waits(router.times)
        assert gaps[0] <= 0.1
        assert 5 <= max(gaps) <= 10
        assert all(later <= 2.5 * earlier + 5 for earlier, later in itertools.pairwise(gaps))
        assert keeper.last_error == "none of 1 peers can be reached: the catalog is stale"
        assert [entry["event"] for entry in logs] == ["ring_unreachable"]
        await nursery.start(late.run)
        await trio.sleep(10.1)
    assert router.members() == (late.me,)
    assert [entry["event"] for entry in logs] == ["ring_unreachable", "ring_joined"]
    assert keeper.last_error is None


async def test_a_change_is_joined_soon_but_not_at_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, first, second = Recorder(ring), await other(nursery, ring), await other(nursery, ring)
    bootstrap = Named(first.me)
    await start(nursery, router, bootstrap)
    await trio.sleep(10)
    for _ in range(5):
        bootstrap.name(second.me)
        await trio.sleep(0.05)
        bootstrap.name(second.me, first.me)
    await trio.sleep(5)
    assert len(router.times) == 2
    assert 2.0 <= router.times[1] - router.times[0] - 10 <= 2.3
    assert set(router.members()) == {first.me, second.me}


async def test_an_empty_answer_removes_no_member(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    bootstrap = Named(friend.me)
    await start(nursery, router, bootstrap)
    await trio.sleep(1)
    bootstrap.name()
    await trio.sleep(EVERY * 2)
    assert router.members() == (friend.me,)


async def test_a_node_that_waits_alone_joins_the_first_that_is_named_at_once(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    bootstrap = Named(router.me)
    await start(nursery, router, bootstrap)
    await trio.sleep(100)
    before = trio.current_time()
    bootstrap.name(router.me, friend.me)
    await trio.sleep(1)
    assert router.times[0] - before <= 0.1


async def test_a_ring_that_is_lost_is_joined_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    keeper = await start(nursery, router, Named(friend.me))
    await trio.sleep(60)
    router.forgetful = True
    before = trio.current_time()
    await trio.sleep(10)
    router.forgetful = False
    await trio.sleep(30)
    assert router.times[1] - before <= 5.1
    assert keeper.rejoins >= 1
    assert keeper.last_error is None


async def test_an_error_of_the_router_is_kept_and_tried_again(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    router.error = RingError("no network")
    keeper = await start(nursery, router, Named(friend.me))
    await trio.sleep(5)
    assert keeper.last_error == "none of 1 peers can be reached: no network"
    router.error = None
    await trio.sleep(10)
    assert router.members() == (friend.me,)
    assert keeper.last_error is None


async def test_a_leader_that_flaps_is_left_alone_for_a_while(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    friends = await ring_of(nursery, ring, 2)
    router = Recorder(ring)
    bootstrap = Named(friends[0].me)
    with structlog.testing.capture_logs() as logs:
        keeper = await keep(nursery, router, bootstrap)
        await trio.sleep(10)
        for number in range(1, 20):
            bootstrap.name(friends[number % 2].me)
            await trio.sleep(10)
        assert keeper.flapping
        assert len(router.times) == 1 + 3
        assert [entry["event"] for entry in logs].count("leader_flapping") == 1
        await trio.sleep(320)
    assert not keeper.flapping
    assert len(router.times) == 1 + 3 + 1, "the last of them is followed in the end"


async def test_ignore_follows_no_leader_but_is_not_left_alone(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    first, second = await other(nursery, ring), await other(nursery, ring)
    router = Recorder(ring)
    bootstrap = Named(first.me)
    await keep(nursery, router, bootstrap, on_leader_change=OnLeaderChange.IGNORE)
    await trio.sleep(10)
    bootstrap.name(second.me)
    await trio.sleep(600)
    assert len(router.times) == 1
    router.forgetful = True
    await trio.sleep(6)
    router.forgetful = False
    assert len(router.times) >= 2


async def test_restart_is_for_changes_of_the_leader_and_not_too_often(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    friends = await ring_of(nursery, ring, 3)
    router = Recorder(ring)
    bootstrap = Named(friends[0].me)
    keeper = await keep(nursery, router, bootstrap, on_leader_change=OnLeaderChange.RESTART)
    await trio.sleep(200)
    bootstrap.name(friends[0].me, friends[2].me)
    await trio.sleep(10)
    assert keeper.restarts == 0, "the leader is the same"
    bootstrap.name(friends[1].me)
    await trio.sleep(10)
    assert keeper.restarts == 1
    bootstrap.name(friends[2].me)
    await trio.sleep(10)
    assert keeper.restarts == 1
    assert len(router.times) >= 3, "it joins instead"


async def test_the_members_of_the_last_run_are_a_way_in(
    nursery: trio.Nursery, autojump_clock: MockClock, tmp_path: Path
) -> None:
    ring = MemoryRing()
    friend, gone = await other(nursery, ring), MemoryRouter(ring, registry=("127.0.0.1", 3))
    Remembered(tmp_path)._save([friend.me, gone.me])
    remembered = Remembered(tmp_path)
    remembered.peers = remembered._load(tmp_path / PEERS_FILE)
    remembered.load = trio.lowlevel.checkpoint  # type: ignore[method-assign]  # a thread would let the clock jump
    remembered.save = _no_thread  # type: ignore[method-assign, assignment]
    router = Recorder(ring)
    keeper = await keep(nursery, router, Named(), remembered=remembered)
    await trio.sleep(1)
    assert router.members() == (friend.me,)
    assert {(peer.id, peer.proven) for peer in router.asked} == {(friend.me.id, True), (gone.me.id, True)}
    assert keeper.last_error is None


async def _no_thread(members: Sequence[PeerInfo]) -> None:
    await trio.lowlevel.checkpoint()


async def test_members_that_are_all_gone_are_given_up_without_a_word(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    remembered = Remembered(None)
    remembered.peers = (MemoryRouter(ring, registry=("127.0.0.1", 3)).me,)
    router = Recorder(ring)
    with structlog.testing.capture_logs() as logs:
        keeper = await keep(nursery, router, Named(), remembered=remembered)
        await trio.sleep(700)
        tried = len(router.times)
        await trio.sleep(700)
    assert len(router.times) == tried
    assert (keeper.last_error, logs) == (None, [])
