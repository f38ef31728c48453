"""Consul's network coordinates: estimates of the round trip to nodes that this node has never asked.

Each agent measures round trips to other agents and computes a coordinate of its node (Vivaldi), so the distance of two
coordinates is about the round trip of their nodes. The estimates order the providers of nodes without a zone, and only
those that this node has not measured itself. They are read rarely, because each answer lists all nodes of the
datacenter: every 300 s at most, and every second for each of them in a large one.

A rule about the use or the age of coordinates belongs here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import structlog
import trio

from spegel_consul.consul.api.client import ConsulClient, Coordinate
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.node_place import NodePlace
from spegel_consul.places import Here

log = structlog.get_logger(__name__)

READ_EVERY, READ_EVERY_EACH = 300.0, 1.0
"""Least seconds between two readings: at all, and per node."""

_FIRST = 30.0  # seconds until the first reading, because Consul needs some to compute a new node's coordinate


def round_trip(one: Coordinate, other: Coordinate) -> float | None:
    """The estimate in seconds; None if the coordinates can't be compared."""
    if len(one.vector) != len(other.vector):
        return None
    apart = math.dist(one.vector, other.vector) + one.height + other.height
    adjusted = apart + one.adjustment + other.adjustment
    found = adjusted if adjusted > 0 else apart
    return found if math.isfinite(found) and found >= 0 else None


class NetworkCoordinates:
    """The round trips from this node, by ``place``'s name of its agent, to the members of ``catalog``."""

    def __init__(self, client: ConsulClient, here: Here, place: NodePlace, catalog: CatalogWatch) -> None:
        self._client = client
        self._here = here
        self._place = place
        self._catalog = catalog
        self._by_peer: dict[str, float] = {}

    def estimate(self, peer_id: str) -> float | None:
        """Seconds of a round trip to the peer, or None."""
        return self._by_peer.get(peer_id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the coordinates until cancelled, unless this node has a zone; calls ``started()`` at once."""
        task_status.started()
        pause = _FIRST
        while True:
            await trio.sleep(pause * random.uniform(0.75, 1.25))
            pause = READ_EVERY
            if self._here.place.zone or not self._place.node:
                self._by_peer = {}
                continue
            try:
                known = await self._client.coordinates()
            except ConsulError as why:
                log.debug("coordinates are unknown", error=str(why))
                continue
            pause = max(READ_EVERY, READ_EVERY_EACH * len(known))
            self._by_peer = self._round_trips(known)

    def _round_trips(self, known: Mapping[str, Coordinate]) -> dict[str, float]:
        mine = known.get(self._place.node)
        found: dict[str, float] = {}
        for service in self._catalog.members if mine is not None else ():
            theirs, peer_id = known.get(service.node), service.meta.get("peer_id")
            if mine is not None and theirs is not None and peer_id:
                seconds = round_trip(mine, theirs)
                if seconds is not None:
                    found[peer_id] = seconds
        return found
