"""The preheat of a cluster: all chosen nodes pull at the same time, so that they can follow each other.

Each node ends on its own, with a reason if it fails, and none delays another. The number of nodes that are asked at the
same time is limited by what one process should have open; a larger cluster is asked in their order.

A rule about the nodes together belongs here.
"""

from __future__ import annotations

import httpx
import trio

from spegel_consul.http import bounded_client
from spegel_consul.oci.reference import Reference
from spegel_consul.web.access import preheat_access
from spegel_consul.web.node_views import Node
from spegel_consul.web.preheat import peer_preheat
from spegel_consul.web.preheat.own_preheat import OwnPreheats
from spegel_consul.web.preheat.preheat_report import ClusterReport, NodePreheat, OwnReport, State
from spegel_consul.web.preheat.preheat_targets import Target

MOST_PEERS = 256
"""Peers that are asked at the same time."""
_ANSWER_LATE = 5.0  # seconds that a peer has beyond the time limit, to tell of its end


class ClusterPreheat:
    """A preheat that ``node`` asks for; ``own`` is this node's part."""

    def __init__(self, node: Node, own: OwnPreheats) -> None:
        self._node = node
        self._own = own

    async def run(self, reference: Reference, targets: list[Target], within: float, report: ClusterReport) -> None:
        """Have all ``targets`` pull the image within so many seconds. ``report`` has the results."""
        image, places = str(reference), trio.CapacityLimiter(MOST_PEERS)
        ends = trio.current_time() + within

        async def peer(client: httpx.AsyncClient, target: Target) -> None:
            assert target.metrics is not None
            async with places:
                left = max(1.0, ends - trio.current_time())
                headers = preheat_access.proof(self._node.credentials, target.id, image)
                report.set(target.id, NodePreheat(state=State.PULLING))
                await peer_preheat.ask(
                    client, target.metrics, image, left, headers, lambda found: report.set(target.id, found)
                )

        async def me(target: Target) -> None:
            own = OwnReport()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._own.run, reference, within, own)
                while not own.done:
                    await own.changed()
                    report.set(target.id, own.now)

        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits)
        with trio.move_on_at(ends + _ANSWER_LATE):
            async with bounded_client.client(transport=transport) as client, trio.open_nursery() as nursery:
                for target in targets:
                    if target.metrics is None:
                        nursery.start_soon(me, target)
                    else:
                        nursery.start_soon(peer, client, target)
        report.end()
