# Joins through the elected leader.
#
# The leader is a rendezvous, not an owner: it stays the answer while Consul is away, between leaders, and when
# its session changes.  Two cases have no other node to name, a cluster without a leader yet and a leader that
# is this node itself (perhaps a new one, elected into an old ring): then up to three healthy routers of the
# catalog are offered in addition.

"""``ConsulBootstrap``: the elected leader, or some of the catalog while it can't help."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.election.candidate import Candidate
from spegel_consul.consul.election.leader_record import LeaderRecord
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.join.sources.consul_catalog import choose
from spegel_consul.peers import PeerInfo


class ConsulBootstrap:
    """Names the leader of ``candidate``'s election, and members of ``catalog`` (of ``spegel-router``) if needed.

    Runs neither of them: their own tasks do.
    """

    def __init__(self, candidate: Candidate, catalog: CatalogWatch | None = None) -> None:
        self._candidate = candidate
        self._catalog = catalog
        self._leader: LeaderRecord | None = None
        self._observed = ObservedPeers("consul")

    @property
    def problem(self) -> str | None:
        """The election's problem, or the catalog's while it is needed."""
        if self._candidate.problem is not None or self._catalog is None or not self._alone():
            return self._candidate.problem
        return self._catalog.problem

    @property
    def leader(self) -> PeerInfo | None:
        """The last known leader; None before anybody is known to lead."""
        return self._leader.to_peer() if self._leader is not None else None

    def peers(self) -> Sequence[PeerInfo]:
        """The last known leader first, even if it is this node; empty before anything is known."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in who or where they are."""
        await self._observed.changed(since)

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
            peers += choose(self._catalog.members, self._candidate.me.to_peer())
        self._observed.set_peers(peers)

    def _alone(self) -> bool:
        return self._leader is None or self._leader.peer_id == self._candidate.me.peer_id
