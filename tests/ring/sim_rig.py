"""Routers in a simulated network."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from conformance.router import eventually
from sim.network import SimHost, SimNetwork

from spegel_consul.peers import peer_id_from_text
from spegel_consul.places import Here
from spegel_consul.ring import Router
from spegel_consul.ring.dht.claim_forest import CHAIN
from spegel_consul.ring.dht.protocol_ids import MEMBERS, WITHDRAW
from spegel_consul.ring.router import KadRouter

MINUTE = 60.0


def raw_id(router: Router) -> bytes:
    assert router.me.id is not None
    return peer_id_from_text(router.me.id)


class SimRig:
    """Routers in a simulated network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._ports = itertools.count(5000)
        self._lives: dict[str | None, tuple[trio.CancelScope, trio.Event]] = {}
        self._registries: dict[str | None, tuple[str, int]] = {}
        self.network = SimNetwork()
        self.hosts: dict[str | None, SimHost] = {}

    async def node(
        self,
        *,
        speaks_members: bool = True,
        follow_chain: int = CHAIN,
        secondary: str | None = None,
        address: str | None = None,
        here: Here | None = None,
    ) -> KadRouter:
        host = self.network.host(address)
        registry = (host.address.host, next(self._ports))
        router = KadRouter(
            host,
            registry=registry,
            secondary=secondary,
            follow_chain=follow_chain,
            rng=random.Random(registry[1]),
            here=here,
        )
        if not speaks_members:
            host.refuse(MEMBERS)
            host.refuse(WITHDRAW)
        scope, ended = trio.CancelScope(), trio.Event()

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await router.run(task_status=task_status)
            finally:
                ended.set()

        await self._nursery.start(run)
        self._lives[router.me.id], self._registries[router.me.id] = (scope, ended), registry
        self.hosts[router.me.id] = host
        return router

    async def kill(self, router: Router) -> None:
        scope, ended = self._lives[router.me.id]
        scope.cancel()
        await ended.wait()

    def registry(self, router: Router) -> tuple[str, int]:
        return self._registries[router.me.id]

    async def ring(self, size: int) -> list[KadRouter]:
        routers = [await self.node() for _ in range(size)]
        for router in routers[1:]:
            assert await router.join([routers[0].me]) == 1
        await eventually(lambda: all(len(router.members()) == size - 1 for router in routers), within=120)
        return routers


@pytest.fixture
async def rig(nursery: trio.Nursery) -> SimRig:
    return SimRig(nursery)
