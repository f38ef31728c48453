"""The bootstraps of Consul, by the suite of all bootstraps, at a real agent."""

from __future__ import annotations

import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from conformance.bootstrap import BootstrapSuite, Place, SeveralPeersSuite, router

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join import Bootstrap
from spegel_consul.join.sources.consul_catalog import CatalogBootstrap
from spegel_consul.join.sources.elected_leader import ElectedBootstrap
from spegel_consul.peers import PeerInfo
from tests.consul.asking import put_key
from tests.consul.realconsul import ConsulAgent

pytestmark = pytest.mark.real

ME = PeerInfo("me", ("/ip4/10.9.9.9/tcp/5001",))
RECORD = LeaderRecord("me", ("/ip4/10.9.9.9/tcp/5001/p2p/me",), node="me")
Peer = tuple[str, int]


class ConsulPlace:
    """Routers that are registered at an agent by a job, so without metadata."""

    def __init__(self, agent: ConsulAgent, client: ConsulClient, nursery: trio.Nursery) -> None:
        self._agent = agent
        self._client = client
        self._nursery = nursery
        self._named: tuple[Peer, ...] = ()
        self._up = True

    async def bootstrap(self) -> Bootstrap:
        watch = CatalogWatch(self._client, "spegel-router", wait=1.0, rng=random.Random(1))
        await self._nursery.start(watch.run)
        return CatalogBootstrap(watch, ME)

    async def name(self, *peers: Peer) -> None:
        gone = set(self._named) - set(peers)
        self._named = peers
        if self._up:
            await self._agent.ready(self._client)
            for host, port in peers:
                await self._client.register_service(
                    {"ID": host, "Name": "spegel-router", "Address": host, "Port": port}
                )
            for host, _ in gone:
                await self._client.deregister_service(host)

    async def fail(self) -> None:
        self._up = False
        self._agent.stop(signal.SIGKILL)

    async def recover(self) -> None:
        self._up = True
        self._agent.start()
        await self.name(*self._named)


class LeaderPlace(ConsulPlace):
    """A leader in the key, which outlasts the agent; this node follows."""

    async def bootstrap(self) -> Bootstrap:
        candidate = Candidate(ConsulLock(self._client), RECORD, rng=random.Random(1))
        await self._nursery.start(candidate.run)
        return ElectedBootstrap(candidate)

    async def name(self, *peers: Peer) -> None:
        self._named = peers
        if self._up:
            await self._agent.ready(self._client)
            _, held = await self._client.kv_get("spegel/leader")
            record = LeaderRecord(f"peer{peers[0][0]}", (router(peers[0]),))
            if held is not None and held.session:  # the same holder says something else
                assert await put_key(self._client, "spegel/leader", record.to_json(session=held.session, since=""))
            else:
                session = await self._client.session_create("holder", ttl=60, lock_delay=0)
                value = record.to_json(session=session, since="")
                assert await self._client.kv_acquire("spegel/leader", session, value)


@pytest.fixture
async def durable_consul(tmp_path: Path) -> AsyncIterator[tuple[ConsulAgent, ConsulClient, trio.Nursery]]:
    config = {"performance": {"raft_multiplier": 1}}
    with ConsulAgent(tmp_path, config, durable=True) as agent:
        async with ConsulClient(agent.settings()) as client, trio.open_nursery() as nursery:
            yield agent, client, nursery
            nursery.cancel_scope.cancel()


@pytest.fixture
async def consul(tmp_path: Path) -> AsyncIterator[tuple[ConsulAgent, ConsulClient, trio.Nursery]]:
    with ConsulAgent(tmp_path) as agent:
        async with ConsulClient(agent.settings()) as client, trio.open_nursery() as nursery:
            yield agent, client, nursery
            nursery.cancel_scope.cancel()


class TestCatalog(BootstrapSuite, SeveralPeersSuite):
    @pytest.fixture
    def place(self, consul: tuple[ConsulAgent, ConsulClient, trio.Nursery]) -> Place:
        return ConsulPlace(*consul)


class TestConsul(BootstrapSuite):
    elects = True

    @pytest.fixture
    def place(self, durable_consul: tuple[ConsulAgent, ConsulClient, trio.Nursery]) -> Place:
        return LeaderPlace(*durable_consul)
