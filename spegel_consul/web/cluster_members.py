"""The members of the cluster: the ring's view and the catalog's view of one moment, compared.

A router that is healthy in the catalog and missing in the ring is the sign of a split. A member of the ring that is
missing in the catalog has just started, or Consul can't reach it. Services that a Nomad job registers have no peer id,
so they are matched by their addresses, as the ring keeper does.

The comparison takes milliseconds with a thousand nodes, so each document makes one. A rule about the match of ring and
catalog for people belongs here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from spegel_consul import __version__
from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.service_definitions import ROUTER
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.join import schedule
from spegel_consul.join.catalog_routers import to_peer
from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.ring.member_view import MemberView


class Ring(Protocol):
    """The part of a router that the views read."""

    @property
    def me(self) -> PeerInfo: ...
    @property
    def at(self) -> float: ...
    @property
    def records(self) -> int: ...
    @property
    def unannounced(self) -> int: ...

    @property
    def warning(self) -> str | None: ...
    def is_dead(self, peer_id: str) -> bool: ...
    def members(self) -> tuple[PeerInfo, ...]: ...
    def view(self) -> tuple[MemberView, ...]: ...
    def lookup(self, key: str, *, count: int = 3) -> AbstractContextManager[AsyncIterator[Provider]]: ...


class ClusterMembers:
    """``services``: the healthy routers of the catalog; ``leader``: the last known; ``registry``: this node's;
    ``told``: names by peer id that nodes said of themselves, which those of the catalog override."""

    def __init__(
        self,
        name: str,
        me: PeerInfo,
        registry: str,
        view: Sequence[MemberView],
        services: Sequence[HealthyService],
        leader: LeaderRecord | None,
        told: Mapping[str, str],
    ) -> None:
        self._name, self._me, self._registry = name, me, registry
        self.view = view
        self.catalog = len(services)
        """Number of healthy routers in the catalog, with this node; 0 if unknown."""
        self._leader = leader.peer_id if leader is not None else None

        peers = {service: peer for service in services if (peer := to_peer(service)) is not None}
        living = [PeerInfo(member.id, member.routers) for member in view if member.alive]
        absent = set(schedule.missing(peers.values(), living, me))
        self._absent = [service for service, peer in peers.items() if peer in absent]

        ids = {addr: member.id for member in view for addr in member.routers}
        ids |= dict.fromkeys(me.addrs, str(me.id))
        self._identified: dict[HealthyService, str] = {}
        for service in services:
            addrs = peers[service].addrs if service in peers else ()
            # its own peer id, or that of the member at its address
            peer_id = service.meta.get("peer_id") or next((ids[addr] for addr in addrs if addr in ids), None)
            if peer_id is not None:
                self._identified[service] = peer_id

        self.names = {str(me.id): name}
        """Names of nodes by peer id, as far as known."""
        for service, peer_id in self._identified.items():
            self.names.setdefault(peer_id, _node_of(service))
        if leader is not None and leader.node:
            self.names.setdefault(leader.peer_id, leader.node)
        for peer_id, told_name in told.items():
            self.names.setdefault(peer_id, told_name)

    @property
    def missing(self) -> list[str]:
        """Names of the healthy routers in the catalog that the ring does not have."""
        return [_node_of(service) for service in self._absent]

    def registries(self) -> dict[str, str]:
        """Names of nodes by ``host:port`` of their registries."""
        known = {member.registry: self.names.get(member.id) or member.id[-8:] for member in self.view}
        known[self._registry] = self._name
        return {registry: name for registry, name in known.items() if registry is not None}

    def peers(self, at: float, keys: int, place: str | None = None) -> list[dict[str, Any]]:
        """This node and all others, in order of names.

        ``at`` (0 to 1) is this node's position in the ring, ``keys`` the number of keys that it announces, and
        ``place`` its place.
        """
        versions = {peer_id: service.meta.get("version", "") for service, peer_id in self._identified.items()}
        me = {
            "node": self._name,
            "id": self._me.id,
            "state": "self",
            "registry": self._registry,
            "router": list(self._me.addrs),
            "version": __version__,
            "rtt_ms": None,
            "keys": keys,
            "last_seen": 0.0,
            "at": at,
            "place": place,
            "leader": self._leader == self._me.id,
        }
        found = [me, *(self._member(member, versions.get(member.id)) for member in self.view)]
        known = {peer["id"] for peer in found}
        # a service with the id of a known member is that member, which is dead
        found += [self._missing_peer(service) for service in self._absent if self._identified.get(service) not in known]
        return sorted(found, key=lambda peer: (str(peer["node"] or "~"), str(peer["id"])))

    def _member(self, member: MemberView, version: str | None) -> dict[str, Any]:
        return {
            "node": self.names.get(member.id),
            "id": member.id,
            "state": "alive" if member.alive else "dead",
            "registry": member.registry,
            "router": list(member.routers),
            "version": version,
            "rtt_ms": round(member.rtt * 1000, 1),
            "keys": member.keys,
            "last_seen": round(member.heard_ago, 1),
            "at": member.at,
            "place": str(member.place) or None,
            "leader": self._leader == member.id,
        }

    def _missing_peer(self, service: HealthyService) -> dict[str, Any]:
        peer_id = self._identified.get(service)
        return {
            "node": _node_of(service),
            "id": peer_id,
            "state": "missing",
            "registry": None,
            "router": [router] if (router := service.meta.get("router")) else [],
            "version": service.meta.get("version"),
            "rtt_ms": None,
            "keys": None,
            "last_seen": None,
            "at": None,
            "place": service.meta.get("place") or None,
            "leader": peer_id is not None and self._leader == peer_id,
        }


def _node_of(service: HealthyService) -> str:
    """The sidecar's name, not the agent's, because several sidecars may share an agent.

    Older versions have it in the service's id alone, there with the registry's port unless that is 5000.
    """
    name = service.id.removeprefix(f"{ROUTER}:")
    return service.meta.get("node") or (name if name != service.id else service.node)
