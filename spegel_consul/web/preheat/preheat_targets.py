"""The nodes that a preheat asks, and the addresses of their metrics ports.

The nodes are this one and the living members of the ring; :mod:`spegel_consul.web.cluster.metrics_ports` has their
addresses. A rule about the choice of nodes belongs here.
"""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.web.cluster import metrics_ports
from spegel_consul.web.node_views import Node


@dataclass(frozen=True, slots=True)
class Target:
    """A node to ask. ``metrics``: the address of its metrics port; None for this node."""

    id: str
    name: str
    metrics: tuple[str, int] | None


async def find(node: Node, count: int | None) -> list[Target]:
    """This node and the others in order of their names: ``count`` nodes in all, or all of them."""
    services = await metrics_ports.catalog(node)
    names, members = node.cluster_members().names, [member for member in node.ring.view() if member.alive]
    me = Target(node.ring.me.id or "", node.name, None)
    others = [
        Target(peer_id, names.get(peer_id) or address[0], address)
        for peer_id, address in metrics_ports.addresses(members, services, node.metrics_address[1]).items()
    ]
    others.sort(key=lambda target: (target.name, target.id))
    return [me, *others][:count]
