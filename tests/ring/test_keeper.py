import itertools
import random
from collections.abc import Sequence

import structlog
import trio
from trio.testing import MockClock

from spegel_consul.ring import PeerInfo, RingError
from spegel_consul.ring.keeper import EVERY, RingKeeper
from spegel_consul.ring.memory import MemoryRing, MemoryRouter


class Named:
    """A bootstrap whose answer a test sets."""

    def __init__(self, *peers: PeerInfo) -> None:
        self.problem: str | None = None
        self._peers = peers
        self._changed = trio.Event()

    def peers(self) -> Sequence[PeerInfo]:
        return self._peers

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
        self.error: RingError | None = None
        self.forgetful = False

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        self.times.append(trio.current_time())
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
    assert (keeper.joins, keeper.rejoins, keeper.last_error) == (4, 3, None)


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


async def test_it_tries_until_somebody_answers(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
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


async def test_an_empty_answer_makes_nobody_forget(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
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
