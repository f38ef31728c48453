"""A rolling deploy replaces each node by one with a new address, and the records of a service discovery change.

The first record of an answer has no meaning: only an election says that the leader has changed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import structlog
import trio
from conformance.router import eventually
from join.keeping import Named
from sim.network import SimNetwork
from trio.testing import MockClock

from spegel_consul.join import Bootstrap
from spegel_consul.join.fallback import SeveralBootstraps
from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.join.peer_formats import FIRST
from spegel_consul.join.polled import PolledBootstrap
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import KadRouter

NODES = 10
BETWEEN = 25.0
"""Seconds between two nodes of the deploy."""


class Records:
    """What DnsSource makes of the address records of those that run: the first three by address, without ids."""

    name = "dns routers.test"

    def __init__(self) -> None:
        self.up: list[PeerInfo] = []

    async def ask(self) -> Sequence[PeerInfo]:
        await trio.lowlevel.checkpoint()
        addresses = sorted(self.up, key=lambda peer: [int(part) for part in peer.addrs[0].split("/")[2].split(".")])
        return [PeerInfo(None, peer.addrs) for peer in addresses[:FIRST]]


class CountingRouter(ReplaceableRouter):
    """Counts the joins that it is told to try."""

    joins = 0

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        self.joins += 1
        return await super().join(peers)


class Deploy:
    """Ten nodes; ``elected`` is given where the oldest leads, and all bootstraps name it."""

    def __init__(self, nursery: trio.Nursery, policy: OnLeaderChange, elected: Named | None = None) -> None:
        self._nursery, self._policy, self._elected = nursery, policy, elected
        self._network, self._records = SimNetwork(), Records()
        self._running: list[tuple[CountingRouter, trio.CancelScope]] = []
        self._numbers = iter(range(250, 0, -1))  # each new node has the lowest address: it is named first
        self.keepers: list[RingKeeper] = []

    def _bootstrap(self, router: ReplaceableRouter) -> Bootstrap:
        if self._elected is not None:
            return self._elected
        dns = PolledBootstrap(self._records, rng=random.Random(len(self.keepers)))
        return SeveralBootstraps([("dns", dns)], router.me, lambda: not router.members())

    async def start(self) -> None:
        number = next(self._numbers)

        def make(before: KadRouter | None) -> KadRouter:
            host = self._network.host(f"10.0.0.{number}", number)
            return KadRouter(host, registry=(f"10.0.0.{number}", 5000), successor_of=before, rng=random.Random(number))

        router, scope = CountingRouter(make), trio.CancelScope()
        bootstrap = self._bootstrap(router)
        keeper = RingKeeper(router, bootstrap, on_leader_change=self._policy, rng=random.Random(number))

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                async with trio.open_nursery() as nursery:
                    for part in (router, bootstrap, keeper):
                        await nursery.start(part.run)
                    task_status.started()

        await self._nursery.start(run)
        self._records.up.append(router.me)
        self._running.append((router, scope))
        self.keepers.append(keeper)
        self._elect()

    def stop(self) -> None:
        router, scope = self._running.pop(0)
        self._records.up.remove(router.me)
        scope.cancel()
        self._elect()

    def _elect(self) -> None:
        if self._elected is not None:
            self._elected.name(self._running[0][0].me)

    def joins(self) -> list[int]:
        return [router.joins for router, _ in self._running]

    def whole(self) -> bool:
        """Whether each node knows all others.

        A node may also know one that has stopped: gossip named it in the moment before its death was noticed. Such a
        member is probed when a lookup yields it.
        """
        running = {router.me.id for router, _ in self._running}
        return all(running <= {router.me.id, *(peer.id for peer in router.members())} for router, _ in self._running)


async def roll(deploy: Deploy) -> list[str]:
    """Start ten nodes, replace each, and return what was logged meanwhile."""
    for _ in range(NODES):
        await deploy.start()
    await eventually(deploy.whole, within=120)
    await trio.sleep(600)
    with structlog.testing.capture_logs() as logs:
        for _ in range(NODES):
            deploy.stop()
            await deploy.start()
            await trio.sleep(BETWEEN)
    return [entry["event"] for entry in logs]


@pytest.mark.parametrize("policy", list(OnLeaderChange))
async def test_a_rolling_deploy_over_dns_changes_no_leader(
    nursery: trio.Nursery, autojump_clock: MockClock, policy: OnLeaderChange
) -> None:
    deploy = Deploy(nursery, policy)
    events = await roll(deploy)
    assert "leader_flapping" not in events
    assert [keeper.flapping for keeper in deploy.keepers] == [False] * (2 * NODES)
    assert sum(keeper.restarts for keeper in deploy.keepers) == 0
    await eventually(deploy.whole, within=60)
    before = deploy.joins()
    deploy.stop()
    await deploy.start()
    await trio.sleep(60)
    after = deploy.joins()[:-1]  # without the one that has just started
    assert all(more > less for less, more in zip(before[1:], after, strict=True)), "joins are held back"


async def test_where_one_leads_the_same_deploy_is_held_and_told(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    deploy = Deploy(nursery, OnLeaderChange.REJOIN, Named())
    assert "leader_flapping" in await roll(deploy)
    assert deploy.keepers[NODES].flapping
    await eventually(deploy.whole, within=60)
