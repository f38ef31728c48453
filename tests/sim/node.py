# One sidecar as far as finding goes: what sidecar.py builds of the rooms `consul`, `bootstrap` and `ring`, over a
# simulated network and a virtual Consul.  All of it is the product's own, down to how a router is made anew; only the
# file of remembered members is kept in memory, and member lists are handed over without being written out as bytes
# (see Lists), because decoding them is most of what a thousand nodes in one process would do.

"""``SimNode``: a node that starts, stops, is killed and starts again."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import trio

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.consul.catalog.service_definitions import ROUTER, spegel_services
from spegel_consul.consul.consul_lock import ConsulLock
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import State
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join import catalog_routers
from spegel_consul.join.keeper import RingKeeper
from spegel_consul.join.remembered_members import MAX_PEERS, Remembered
from spegel_consul.join.sources.elected_leader import ElectedBootstrap
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.dht.messages import MemberReport, WireError, frame
from spegel_consul.ring.members import gossip
from spegel_consul.ring.restartable import ReplaceableRouter
from spegel_consul.ring.router import TTL, KadRouter
from tests.sim.network import SimHost, SimNetwork
from tests.sim.virtualconsul import VirtualConsul

FAREWELL = 0.3
_DRIFTS = (2e-4, 2e-4, 2e-4, 1e-2)  # most clocks are right, those of some machines are not


class Kept(Remembered):
    """The members of the last run, in memory."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(None)
        self._rng = rng

    async def save(self, members: Sequence[PeerInfo]) -> None:
        if members:
            self.peers = tuple(self._rng.sample(members, min(MAX_PEERS, len(members))))


class SimNode:
    """Node ``number``; ``keys`` is what it has."""

    def __init__(self, number: int, network: SimNetwork, consul: VirtualConsul, rng: random.Random) -> None:
        self.number = number
        self.name = f"n{number}"
        self.address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self.keys = [f"own {number}", f"shared {number % 7}"]
        self.drift = rng.uniform(-1, 1) * rng.choice(_DRIFTS)
        self.agent = consul.agent(self.name, self.drift)
        self.running = False
        self.host: SimHost
        self.router: ReplaceableRouter
        self.candidate: Candidate
        self.keeper: RingKeeper
        self._network = network
        self._rng = rng
        self._kept = Kept(rng)
        self._identity = number + 1
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def kad(self) -> KadRouter:
        return self.router._current.router

    @property
    def leads(self) -> bool:
        if not self.running:
            return False
        view = self.candidate.view
        return view.state is State.LEADER and view.fresh

    def forget_identity(self) -> None:
        """The data directory is lost."""
        self._identity += 1_000_000
        self._kept = Kept(self._rng)

    def kill(self) -> None:
        """As with SIGKILL."""
        if self.running:
            self._client.dead = True
            self._end()

    async def stop(self) -> None:
        """As with SIGTERM."""
        if self.running:
            with trio.move_on_after(FAREWELL):
                await self.router.leave()
            if self.running:
                self._end()

    def _end(self) -> None:
        self.running = False
        self._scope.cancel()
        self.agent.registered(None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One process, until it is stopped or killed."""
        rng = lambda: random.Random(self._rng.random())  # noqa: E731

        def make(before: KadRouter | None) -> KadRouter:
            self.host = self._network.host(self.address, self._identity)
            ttl = TTL * (1 + self.drift)
            router = KadRouter(self.host, registry=(self.address, 5000), ttl=ttl, successor_of=before, rng=rng())
            if before is None:
                router._records._secret = b"the same in each run"[:16]  # it decides on the order of answers
            return router

        self._scope, self._client = trio.CancelScope(), self.agent.client()
        self.router = ReplaceableRouter(make)
        me = self.router.me
        record = LeaderRecord(me.id, tuple(f"{addr}/p2p/{me.id}" for addr in me.addrs), node=self.name)
        services = spegel_services(
            node=self.name,
            address=self.address,
            peer_id=me.id,
            router_addr=record.addrs[0],
            version="0",
            registry_port=5000,
            router_port=5001,
            metrics_port=9090,
        )
        catalog = CatalogWatch(self._client, ROUTER, rng=rng())
        self.candidate = Candidate(
            ConsulLock(self._client, leader_service=LeaderService(self._client, services.leader)),
            record,
            cluster_size=lambda: len(catalog.members),
            rng=rng(),
        )
        bootstrap = ElectedBootstrap(self.candidate, catalog)
        known = catalog_routers.CatalogRouters(catalog)
        self.keeper = RingKeeper(self.router, bootstrap, known_routers=known, remembered=self._kept, rng=rng())
        self.running = True
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.router.run)
                await self.router.announce(self.keys)
                for part in (catalog, self.candidate, bootstrap, self.keeper):
                    await nursery.start(part.run)
                meta = {"peer_id": me.id, "router": record.addrs[0]}
                self.agent.registered(HealthyService(self.name, ROUTER, self.name, self.address, 5001, meta=meta))
                task_status.started()
                await trio.sleep_forever()


class Lists:
    """Member lists on their way, by a number that travels in their place."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._lists: dict[bytes, list[MemberReport]] = {}

    def encode(self, reports: Iterable[MemberReport]) -> bytes:
        name = next(self._numbers).to_bytes(8, "big")
        self._lists[name] = list(reports)
        if len(self._lists) > 4096:
            del self._lists[next(iter(self._lists))]
        return frame(name)

    def decode(self, body: bytes) -> Iterator[MemberReport]:
        try:
            return iter(self._lists.pop(body))
        except KeyError:
            raise WireError("a member list that is too old") from None


@contextmanager
def shortcuts() -> Iterator[None]:
    """What many nodes in one process need not do each for itself."""
    lists, to_peer = Lists(), catalog_routers.to_peer
    known: dict[int, tuple[HealthyService, PeerInfo | None]] = {}

    def shared(service: HealthyService) -> PeerInfo | None:
        if id(service) not in known:
            known[id(service)] = service, to_peer(service)
        return known[id(service)][1]

    with (
        mock.patch.object(gossip, "encode_members", lists.encode),
        mock.patch.object(gossip, "decode_members", lists.decode),
        mock.patch.object(catalog_routers, "to_peer", shared),
    ):
        yield
