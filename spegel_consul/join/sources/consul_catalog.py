"""``CatalogBootstrap``: some of the healthy routers in Consul's catalog.

It needs no lock, no session and no right to write.  It names three of the healthy routers, chosen by a hash of both
ends (rendezvous hashing).  So each node names others, and the same ones as long as they are there; the choices of all
nodes together connect them all.

A sidecar registers its peer id and multiaddr in the metadata of its service.  A Nomad job registers only an address and
a port; then the id is learnt when the connection is made.

A new rule about the choice among routers belongs here.
"""

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
    """Names members of ``catalog`` (of ``spegel-router``); another task runs the watch. ``me`` is this node."""

    leader = None

    def __init__(self, catalog: CatalogWatch, me: PeerInfo) -> None:
        self._catalog = catalog
        self._me = me
        self._observed = ObservedPeers("catalog")

    @property
    def problem(self) -> str | None:
        """The problem of the catalog."""
        return self._catalog.problem

    def peers(self) -> Sequence[PeerInfo]:
        """Up to three other nodes; empty before the first answer."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the catalog until cancelled; calls ``started()`` at once."""
        task_status.started()
        while True:
            members = self._catalog.members
            if some := choose(members, self._me):
                self._observed.set_peers(some)
            await self._catalog.changed(members)


def choose(members: Sequence[HealthyService], me: PeerInfo) -> tuple[PeerInfo, ...]:
    """Up to three of ``members``, without this node."""
    found: dict[str, PeerInfo] = {}
    for peer in map(to_peer, members):
        if peer is not None and peer.id != me.id and not set(peer.addrs) & set(me.addrs):
            found[peer.id or peer.addrs[0]] = peer
    return tuple(found[name] for name in rendezvous(found, me.id or ""))


def rendezvous(names: Sequence[str] | dict[str, PeerInfo], me: str) -> list[str]:
    """The up to three of ``names`` that come first in an order by hash, which is another one for each ``me``."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{me} {name}".encode("utf-8", "surrogatepass")).digest())[
        :FIRST
    ]
