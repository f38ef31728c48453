# The ring and the catalog are two views of the same cluster.  A member that the catalog calls healthy and the ring does
# not know is the sign of a split; the other way round is a node that has just started or that Consul can't reach.
# Where a Nomad job registers the services they carry no peer id, so they are told apart by their addresses, as the ring
# keeper does it.
#
# Counting takes milliseconds where there are a thousand nodes, so it is done once for each document.

"""The members of the cluster, as the ring and the catalog have them at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spegel_consul import __version__
from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.service_definitions import ROUTER
from spegel_consul.consul.election.leader_record import LeaderRecord
from spegel_consul.join import schedule
from spegel_consul.join.catalog_routers import to_peer
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.member_view import MemberView


class ClusterMembers:
    """``services`` are the healthy routers of the catalog, ``leader`` the last one known, ``registry`` our own."""

    def __init__(
        self,
        name: str,
        me: PeerInfo,
        registry: str,
        view: Sequence[MemberView],
        services: Sequence[HealthyService],
        leader: LeaderRecord | None,
    ) -> None:
        self._name, self._me, self._registry = name, me, registry
        self.view = view
        self.catalog = len(services)
        """How many healthy routers the catalog has, this one among them; 0 if it is not known."""
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
            # what it says of itself, or who is at its address
            peer_id = service.meta.get("peer_id") or next((ids[addr] for addr in addrs if addr in ids), None)
            if peer_id is not None:
                self._identified[service] = peer_id

        self.names = {str(me.id): name}
        """The names of nodes by their peer ids, as far as they are known."""
        for service, peer_id in self._identified.items():
            self.names.setdefault(peer_id, _node_of(service))
        if leader is not None and leader.node:
            self.names.setdefault(leader.peer_id, leader.node)

    @property
    def missing(self) -> list[str]:
        """Names of the healthy routers in the catalog that the ring does not have."""
        return [_node_of(service) for service in self._absent]

    def registries(self) -> dict[str, str]:
        """The names of nodes by ``host:port`` of their registries."""
        known = {member.registry: self.names.get(member.id) or member.id[-8:] for member in self.view}
        known[self._registry] = self._name
        return {registry: name for registry, name in known.items() if registry is not None}

    def peers(self, at: float, keys: int) -> list[dict[str, Any]]:
        """This node, which is ``at`` on the circle and announces ``keys``, and all others, by name."""
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
            "leader": self._leader == self._me.id,
        }
        found = [me, *(self._member(member, versions.get(member.id)) for member in self.view)]
        known = {peer["id"] for peer in found}
        # one that is known by its id is shown as dead
        found += [self._missed(service) for service in self._absent if self._identified.get(service) not in known]
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
            "leader": self._leader == member.id,
        }

    def _missed(self, service: HealthyService) -> dict[str, Any]:
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
            "leader": peer_id is not None and self._leader == peer_id,
        }


def _node_of(service: HealthyService) -> str:
    """The name that a sidecar has, rather than its agent's: several sidecars may share an agent."""
    name = service.id.removeprefix(f"{ROUTER}:")
    return name if name != service.id else service.node
