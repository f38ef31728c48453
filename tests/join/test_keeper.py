import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio
from fakes.memory_router import MemoryRing, MemoryRouter
from trio.testing import MockClock

from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.join.remembered_members import PEERS_FILE, Remembered
from spegel_consul.join.schedule import EVERY
from spegel_consul.peers import PeerInfo, RingError


class Named:
    """A bootstrap whose answer a test sets; the first of it leads."""

    def __init__(self, *peers: PeerInfo) -> None:
        self.problem: str | None = None
        self._peers = peers
        self._changed = trio.Event()

    def peers(self) -> Sequence[PeerInfo]:
        return self._peers

    @property
    def leader(self) -> PeerInfo | None:
        return self._peers[0] if self._peers else None

    def name(self, *peers: PeerInfo) -> None:
        self._peers = peers
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        await trio.lowlevel.checkpoint()
        while tuple(self._peers) == tuple(since):
            await self._changed.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()


class Recorder(MemoryRouter):
    """Notes when it was told to join."""

    def __init__(self, ring: MemoryRing) -> None:
        super().__init__(ring, registry=("127.0.0.1", 1))
        self.times: list[float] = []
        self.asked: tuple[PeerInfo, ...] = ()
        self.error: RingError | None = None
        self.forgetful = False

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        self.times.append(trio.current_time())
        self.asked = tuple(peers)
        if self.error is not None:
            raise self.error
        return await super().join(peers)

    def members(self) -> tuple[PeerInfo, ...]:
        return () if self.forgetful else super().members()


def waits(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def start(nursery: trio.Nursery, router: MemoryRouter, bootstrap: Named) -> RingKeeper:
    await nursery.start(router.run)
    keeper = RingKeeper(router, bootstrap, rng=random.Random(5))
    await nursery.start(keeper.run)
    return keeper


async def other(nursery: trio.Nursery, ring: MemoryRing) -> MemoryRouter:
    router = MemoryRouter(ring, registry=("127.0.0.1", 2))
    await nursery.start(router.run)
    return router


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


class Catalog:
    """A roster whose answer a test sets."""

    def __init__(self, *routers: PeerInfo) -> None:
        self.named: tuple[PeerInfo, ...] = routers

    def routers(self) -> Sequence[PeerInfo]:
        return self.named


async def keep(nursery: trio.Nursery, router: MemoryRouter, bootstrap: Named, **options: object) -> RingKeeper:
    await nursery.start(router.run)
    keeper = RingKeeper(router, bootstrap, rng=random.Random(5), **options)  # type: ignore[arg-type]
    await nursery.start(keeper.run)
    return keeper


async def ring_of(nursery: trio.Nursery, ring: MemoryRing, size: int) -> list[MemoryRouter]:
    routers = [await other(nursery, ring) for _ in range(size)]
    for router in routers[1:]:
        await router.join([routers[0].me])
    return routers


async def test_two_rings_of_one_catalog_are_found_out_and_become_one(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    left, right = await ring_of(nursery, ring, 3), await ring_of(nursery, ring, 3)
    router = Recorder(ring)
    catalog = Catalog(router.me, *(each.me for each in left))
    keeper = await keep(nursery, router, Named(left[0].me), known_routers=catalog)
    await trio.sleep(100)
    assert (keeper.missing, len(router.members())) == (0, 3)
    catalog.named += tuple(each.me for each in right)
    await trio.sleep(5 + 5.1)
    assert len(router.members()) == len(left[2].members()) == len(right[2].members()) == 6
    assert keeper.missing == 0


async def test_a_split_that_stays_is_told_once(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    class OneWay(Recorder):
        """Reaches others and does not keep them, as behind a firewall that lets nothing back."""

        async def join(self, peers: Sequence[PeerInfo]) -> int:
            self.times.append(trio.current_time())
            return len(peers) if stranger.me in peers else await MemoryRouter.join(self, peers)

    ring = MemoryRing()
    router, friend, stranger = OneWay(ring), await other(nursery, ring), await other(nursery, ring)
    catalog = Catalog(router.me, friend.me, stranger.me)
    with structlog.testing.capture_logs() as logs:
        keeper = await keep(nursery, router, Named(friend.me), known_routers=catalog)
        await trio.sleep(600)
    assert [entry["event"] for entry in logs] == ["ring_joined", "ring_split"]
    assert (keeper.splits, keeper.missing) == (1, 1)
    catalog.named = (router.me, friend.me)
    await trio.sleep(200)
    assert keeper.missing == 0


async def test_a_catalog_that_is_empty_filtered_or_old_removes_no_member(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ring = MemoryRing()
    friends = await ring_of(nursery, ring, 3)
    gone = MemoryRouter(ring, registry=("127.0.0.1", 2))
    router = Recorder(ring)
    catalog = Catalog(router.me, *(each.me for each in friends))
    bootstrap = Named(friends[0].me)
    keeper = await keep(nursery, router, bootstrap, known_routers=catalog)
    everybody = {each.me for each in friends}
    for named in ((), (router.me,), (friends[1].me,), (gone.me,), (gone.me, *everybody)):
        catalog.named = named
        bootstrap.name(*named)
        await trio.sleep(200)
        assert set(router.members()) == everybody
    assert keeper.missing == 1, "the one that is gone is named, and tried now and then"
    assert keeper.splits == 0
    assert keeper.last_error is None


async def test_a_named_peer_that_was_forgotten_is_joined_again_within_two_minutes(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """A long outage between two sites removes the members of each from the tables of the other."""
    ring = MemoryRing()
    near, far = await ring_of(nursery, ring, 2), MemoryRouter(ring, registry=("127.0.0.1", 2))
    router = Recorder(ring)
    named = Named(near[0].me, PeerInfo(None, far.me.addrs))
    keeper = await keep(nursery, router, named, known_routers=Catalog(router.me, *(each.me for each in near)))
    await trio.sleep(600)
    assert len(router.members()) == 2
    assert 8 <= len(router.times) <= 14, "the absent one is tried about once a minute"
    assert (keeper.splits, keeper.missing, keeper.last_error) == (0, 0, None)
    await nursery.start(far.run)
    await trio.sleep(80)
    assert set(router.members()) == {near[0].me, near[1].me, far.me}


async def test_a_named_peer_that_is_a_member_under_another_address_is_joined_as_seldom_as_all(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    class Translated(Recorder):
        async def join(self, peers: Sequence[PeerInfo]) -> int:
            return await super().join([friend.me if peer == by_name else peer for peer in peers])

    ring = MemoryRing()
    router, friend = Translated(ring), await other(nursery, ring)
    by_name = PeerInfo(None, ("/dns4/friend.example/tcp/5001",))
    keeper = await keep(nursery, router, Named(by_name))
    await trio.sleep(3 * EVERY)
    assert router.members() == (friend.me,)
    assert len(router.times) <= 7
    assert keeper.splits == 0


async def test_a_catalog_without_ids_is_compared_by_address(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    ring = MemoryRing()
    router, friend = Recorder(ring), await other(nursery, ring)
    catalog = Catalog(*(PeerInfo(None, each.me.addrs) for each in (router, friend)))
    keeper = await keep(nursery, router, Named(), known_routers=catalog)
    await trio.sleep(20)
    assert router.members() == (friend.me,)
    await trio.sleep(600)
    assert (len(router.times), keeper.missing) == (1, 0)


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
