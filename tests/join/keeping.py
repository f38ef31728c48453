"""A keeper of a ring in memory, with a bootstrap and a catalog whose answers a test sets."""

import itertools
import random
from collections.abc import Sequence

import trio
from fakes.memory_router import MemoryRing, MemoryRouter

from spegel_consul.join.keeper import RingKeeper
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
