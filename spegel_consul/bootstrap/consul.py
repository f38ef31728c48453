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
import ipaddress
from collections.abc import Sequence

import trio

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
            peers += _some(self._catalog.members, self._candidate.me)
        if _who_and_where(peers) != _who_and_where(self._peers):
            self._peers = peers
            self._changed.set()
            self._changed = trio.Event()

    def _alone(self) -> bool:
        return self._leader is None or self._leader.peer_id == self._candidate.me.peer_id


def _who_and_where(peers: Sequence[PeerInfo]) -> set[tuple[str | None, frozenset[str]]]:
    return {(peer.id, frozenset(peer.addrs)) for peer in peers}


def _some(members: Sequence[HealthyService], me: LeaderRecord) -> tuple[PeerInfo, ...]:
    """Others than ``me``. What Nomad or an operator registered has no peer id; then the address has to do."""
    found: dict[str, PeerInfo] = {}
    for member in members:
        peer_id, router = member.meta.get("peer_id"), member.meta.get("router", "")
        if peer_id and router.startswith("/"):
            found[peer_id] = PeerInfo(peer_id, (router.removesuffix(f"/p2p/{peer_id}"),))
        elif (address := _multiaddr(member)) is not None:
            found[address] = PeerInfo(None, (address,))
    mine = {addr.removesuffix(f"/p2p/{me.peer_id}") for addr in me.addrs}
    others = [name for name, peer in found.items() if peer.id != me.peer_id and mine.isdisjoint(peer.addrs)]
    nearest = sorted(others, key=lambda name: hashlib.sha256(f"{me.peer_id} {name}".encode()).digest())
    return tuple(found[name] for name in nearest[:_FALLBACK])


def _multiaddr(member: HealthyService) -> str | None:
    try:
        version = ipaddress.ip_address(member.address).version
    except ValueError:
        return None
    return f"/ip{version}/{member.address}/tcp/{member.port}" if member.port else None
