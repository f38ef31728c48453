"""``ElectedBootstrap``: the elected leader, and some routers of the catalog while the leader is of no use.

The leader is a rendezvous, not an owner: it stays the answer while the store of the lock is unavailable, between two
leaders, and when its session changes.  In two cases it names no other node: in a cluster without a leader yet, and on
the leader itself (perhaps a new one, elected into an old ring).  Then up to three healthy routers of the catalog are
named in addition.

A new rule about the use of the election for joins belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.join.sources.consul_catalog import choose
from spegel_consul.peers import PeerInfo


class ElectedBootstrap:
    """Names the leader of ``candidate``'s election, and members of ``catalog`` (of ``spegel-router``) if needed.

    The candidate and the watch of the catalog run elsewhere.
    """

    def __init__(self, candidate: Candidate, catalog: CatalogWatch | None = None) -> None:
        self.candidate = candidate
        self._catalog = catalog
        self._leader: LeaderRecord | None = None
        self._observed = ObservedPeers("consul")

    @property
    def problem(self) -> str | None:
        """The problem of the election, or of the catalog while it is needed."""
        if self.candidate.problem is not None or self._catalog is None or not self._names_no_other():
            return self.candidate.problem
        return self._catalog.problem

    @property
    def leader(self) -> PeerInfo | None:
        """The last known leader; None before the first one."""
        return self._leader.to_peer() if self._leader is not None else None

    def peers(self) -> Sequence[PeerInfo]:
        """The last known leader first, even if it is this node; empty before the first answer."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the election and the catalog until cancelled; calls ``started()`` at once."""
        self._update()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_election)
            if self._catalog is not None:
                nursery.start_soon(self._follow_catalog, self._catalog)

    async def _follow_election(self) -> None:
        while True:
            view = self.candidate.view
            self._update()
            await self.candidate.changed(view)

    async def _follow_catalog(self, catalog: CatalogWatch) -> None:
        while True:
            members = catalog.members
            self._update()
            await catalog.changed(members)

    def _update(self) -> None:
        self._leader = self.candidate.view.leader or self._leader
        peers: tuple[PeerInfo, ...] = (self._leader.to_peer(),) if self._leader is not None else ()
        if self._catalog is not None and self._names_no_other():
            peers += choose(self._catalog.members, self.candidate.me.to_peer())
        self._observed.set_peers(peers)

    def _names_no_other(self) -> bool:
        return self._leader is None or self._leader.peer_id == self.candidate.me.peer_id
