# Joins through the catalog alone: no lock, no session, no right to write anything.  Three of the healthy routers,
# chosen by a hash of both ends, so that every node names others, and the same ones as long as they are there: the
# choices of all nodes together connect them all.
#
# Where this program registered the service, it says its peer id and multiaddr in the metadata.  Where a Nomad job
# did, there is only an address and a port; the id is learnt when the connection is made.

"""``CatalogBootstrap``: some of the healthy routers in Consul's catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.join.catalog_routers import to_peer
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.join.peer_formats import FIRST
from spegel_consul.peers import PeerInfo


class CatalogBootstrap:
    """Names members of ``catalog`` (of ``spegel-router``), whose own task runs elsewhere. ``me`` is this peer's id."""

    leader = None

    def __init__(self, catalog: CatalogWatch, me: PeerInfo) -> None:
        self._catalog = catalog
        self._me = me
        self._observed = ObservedPeers("catalog")

    @property
    def problem(self) -> str | None:
        """The catalog's problem."""
        return self._catalog.problem

    def peers(self) -> Sequence[PeerInfo]:
        """Up to three others; empty before anything is known."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in who or where they are."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the catalog until cancelled; ``started()`` at once."""
        task_status.started()
        while True:
            members = self._catalog.members
            if some := choose(members, self._me):
                self._observed.set_peers(some)
            await self._catalog.changed(members)


def choose(members: Sequence[HealthyService], me: PeerInfo) -> tuple[PeerInfo, ...]:
    """Three of ``members`` without this node."""
    found: dict[str, PeerInfo] = {}
    for peer in map(to_peer, members):
        if peer is not None and peer.id != me.id and not set(peer.addrs) & set(me.addrs):
            found[peer.id or peer.addrs[0]] = peer
    return tuple(found[name] for name in rendezvous(found, me.id or ""))


def rendezvous(names: Sequence[str] | dict[str, PeerInfo], me: str) -> list[str]:
    """Three of ``names``: those nearest to ``me`` by hash, stable while they are there."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{me} {name}".encode("utf-8", "surrogatepass")).digest())[
        :FIRST
    ]
