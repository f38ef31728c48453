"""The addresses of the other nodes' metrics ports.

The catalog has the address of each node's metrics port (``spegel-metrics``); an entry is matched by its peer id, or by
the node's address if it has none, as a Nomad job's. For a node without an entry, and without a catalog, the port is
assumed to be the same as this node's.

A rule about these addresses belongs here; the choice of the nodes to ask belongs to its user.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress

import trio

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.service_definitions import METRICS
from spegel_consul.multiaddrs import parse
from spegel_consul.peers import host_port
from spegel_consul.ring.member_view import MemberView
from spegel_consul.web.node_views import Node

_CATALOG_WITHIN = 3.0
_PAGE_WITHIN = 0.5  # a page does not wait longer for a Consul that hangs
_FRESH = 30.0

Address = tuple[str, int]


async def catalog(node: Node, within: float = _CATALOG_WITHIN) -> tuple[HealthyService, ...]:
    """The healthy metrics ports in the catalog; empty if Consul does not answer within so many seconds."""
    if node.consul is not None:
        with trio.move_on_after(within), suppress(ConsulError):
            _, services = await node.consul.client.health_service(METRICS, stale=True)
            return services
    return ()


def addresses(members: Sequence[MemberView], services: Sequence[HealthyService], port: int) -> dict[str, Address]:
    """The addresses by peer id; without the members that have no address at all. ``port``: this node's own."""
    by_id: dict[str, Address] = {}
    by_host: dict[str, Address] = {}
    for service in services:
        if not (service.address and 0 < service.port < 65536):
            continue
        peer_id = service.meta.get("peer_id")
        if peer_id:
            by_id.setdefault(peer_id, (service.address, service.port))
        else:
            by_host[service.address] = service.address, service.port
    found = {}
    for member in members:
        hosts = _hosts(member)
        named = by_id.get(member.id) or next((by_host[host] for host in hosts if host in by_host), None)
        if named is not None or hosts:
            found[member.id] = named or (hosts[0], port)
    return found


def _hosts(member: MemberView) -> list[str]:
    """The hosts of a member, that of its registry first."""
    hosts = [found.host for text in member.routers if (found := parse(text)) is not None]
    if member.registry is not None:
        with suppress(ValueError):
            if host := urllib.parse.urlsplit(f"//{member.registry}").hostname:
                hosts.insert(0, host)
    return hosts


class MetricsPorts:
    """The addresses for pages, which are asked for every few seconds: the catalog is read twice a minute at most."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._asking = trio.Lock()
        self._services: tuple[HealthyService, ...] = ()
        self._stale_at = -math.inf

    async def find(self) -> dict[str, Address]:
        """The addresses by peer id of all members of the ring, dead ones too."""
        async with self._asking:
            if trio.current_time() >= self._stale_at:
                self._services = await catalog(self._node, _PAGE_WITHIN) or self._services
                self._stale_at = trio.current_time() + _FRESH
        return addresses(self._node.ring.view(), self._services, self._node.metrics_address[1])

    async def pages(self) -> dict[str, str]:
        """The URLs of their status pages by peer id."""
        return {peer_id: page_of(address) for peer_id, address in (await self.find()).items()}


def page_of(address: Address) -> str:
    """The URL of a node's status page."""
    return f"http://{host_port(*address)}/debug/web/"
