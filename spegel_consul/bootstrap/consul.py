# Joins through the elected leader.
#
# The leader is a rendezvous, not an owner: it stays the answer while Consul is away, between leaders, and when
# its session changes.  Two cases have no other node to name, a cluster without a leader yet and a leader that
# is this node itself (perhaps a new one, elected into an old ring): then up to three healthy routers of the
# catalog are offered in addition.  They are chosen by a hash of both peers' ids, so that every node names others,
# and the same ones as long as they are there.

"""``ConsulBootstrap``: the elected leader, or some of the catalog while it can't help."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from spegel_consul.bootstrap.catalog import to_peer
from spegel_consul.consul.candidate import Candidate
from spegel_consul.consul.client import HealthyService
from spegel_consul.consul.record import LeaderRecord
from spegel_consul.consul.watch import CatalogWatch
from spegel_consul.ring import PeerInfo

_FALLBACK = 3


class ConsulBootstrap:
    """Names the leader of ``candidate``'s election, and members of ``catalog`` (of ``spegel-router``) if needed.

    Runs neither of them: their own tasks do.
    """

    def __init__(self, candidate: Candidate, catalog: CatalogWatch | None = None) -> None:
        self._candidate = candidate
        self._catalog = catalog
        self._leader: LeaderRecord | None = None
        self._peers: tuple[PeerInfo, ...] = ()
        self._changed = trio.Event()

    @property
    def problem(self) -> str | None:
        """The election's problem, or the catalog's while it is needed."""
        if self._candidate.problem is not None or self._catalog is None or not self._alone():
            return self._candidate.problem
        return self._catalog.problem

    def peers(self) -> Sequence[PeerInfo]:
        """The last known leader first, even if it is this node; empty before anything is known."""
        return self._peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in who or where they are."""
        while _who_and_where(self._peers) == _who_and_where(since):
            await self._changed.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the election and the catalog until cancelled; ``started()`` at once."""
        self._update()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_election)
            if self._catalog is not None:
                nursery.start_soon(self._follow_catalog, self._catalog)

    async def _follow_election(self) -> None:
        while True:
            view = self._candidate.view
            self._update()
            await self._candidate.changed(view)

    async def _follow_catalog(self, catalog: CatalogWatch) -> None:
        while True:
            members = catalog.members
            self._update()
            await catalog.changed(members)

    def _update(self) -> None:
        self._leader = self._candidate.view.leader or self._leader
        peers: tuple[PeerInfo, ...] = (self._leader.to_peer(),) if self._leader is not None else ()
        if self._catalog is not None and self._alone():
            peers += _some(self._catalog.members, self._candidate.me.peer_id)
        if _who_and_where(peers) != _who_and_where(self._peers):
            self._peers = peers
            self._changed.set()
            self._changed = trio.Event()

    def _alone(self) -> bool:
        return self._leader is None or self._leader.peer_id == self._candidate.me.peer_id


def _who_and_where(peers: Sequence[PeerInfo]) -> set[tuple[str | None, frozenset[str]]]:
    return {(peer.id, frozenset(peer.addrs)) for peer in peers}


def _some(members: Sequence[HealthyService], me: str) -> tuple[PeerInfo, ...]:
    peers = {peer.id: peer for peer in map(to_peer, members) if peer is not None}
    found = {peer_id: peer for peer_id, peer in peers.items() if peer_id is not None and peer_id != me}
    nearest = sorted(found, key=lambda peer_id: hashlib.sha256(f"{me} {peer_id}".encode()).digest())
    return tuple(found[peer_id] for peer_id in nearest[:_FALLBACK])
