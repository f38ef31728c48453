"""The nodes that a preheat asks, and the addresses of their metrics ports.

The nodes are this one and the living members of the ring. The catalog has the address of each node's metrics port
(``spegel-metrics``); an entry is matched by its peer id, or by the node's address if it has none, as a Nomad job's. For
a node without an entry, and without a catalog, the port is assumed to be the same as this node's.

A rule about the choice of nodes or their addresses belongs here.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import trio

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.service_definitions import METRICS
from spegel_consul.multiaddrs import parse
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web.node_views import Node

_CATALOG_WITHIN = 3.0


@dataclass(frozen=True, slots=True)
class Target:
    """A node to ask. ``metrics``: the address of its metrics port; None for this node."""

    id: str
    name: str
    metrics: tuple[str, int] | None


async def find(node: Node, count: int | None) -> list[Target]:
    """This node and the others in order of their names: ``count`` nodes in all, or all of them."""
    services = await _catalog(node)
    names = node.cluster_members().names
    me = Target(node.ring.me.id or "", node.name, None)
    others = [
        Target(member.id, names.get(member.id) or found[0], found)
        for member in node.ring.view()
        if member.alive and (found := _metrics(member, services, node.metrics_address[1])) is not None
    ]
    others.sort(key=lambda target: (target.name, target.id))
    return [me, *others][:count]


async def _catalog(node: Node) -> tuple[HealthyService, ...]:
    """The healthy metrics ports in the catalog; empty if Consul does not answer."""
    if node.consul is not None:
        with trio.move_on_after(_CATALOG_WITHIN), suppress(ConsulError):
            _, services = await node.consul.client.health_service(METRICS, stale=True)
            return services
    return ()


def _metrics(member: MemberView, services: Iterable[HealthyService], port: int) -> tuple[str, int] | None:
    """The address of a member's metrics port; None if the member has no address at all."""
    hosts = [found.host for text in member.routers if (found := parse(text)) is not None]
    if member.registry is not None and (host := urllib.parse.urlsplit(f"//{member.registry}").hostname):
        hosts.insert(0, host)
    by_address = None
    for service in services:
        if not (service.address and 0 < service.port < 65536):
            continue
        peer_id = service.meta.get("peer_id")
        if peer_id == member.id:
            return service.address, service.port
        if not peer_id and service.address in hosts:
            by_address = service.address, service.port
    return by_address or ((hosts[0], port) if hosts else None)
