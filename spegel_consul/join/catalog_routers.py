"""``CatalogRouters``: the routers of a Consul catalog, as peers.

Each router announces its id and addresses in the metadata of its instance (peer_id, router, also).  An instance that
another program registered, such as Nomad, has only an address; its id is learnt when it is dialled.

A new field of the metadata that names an address of a router belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.multiaddrs import Address, parse, split_peer_id
from spegel_consul.peers import PeerInfo


class CatalogRouters:
    """All instances in ``catalog`` (of ``spegel-router``) as peers; another task runs the watch."""

    def __init__(self, catalog: CatalogWatch) -> None:
        self._catalog = catalog
        self._converted: tuple[HealthyService, ...] = ()
        self._routers: tuple[PeerInfo, ...] = ()

    def routers(self) -> Sequence[PeerInfo]:
        """One peer for each id, or for each address without an id."""
        if self._catalog.members is not self._converted:
            self._converted = self._catalog.members
            found = [peer for peer in map(to_peer, self._converted) if peer is not None]
            self._routers = tuple({peer.id or peer.addrs: peer for peer in found}.values())
        return self._routers


def to_peer(service: HealthyService) -> PeerInfo | None:
    """The router of an instance; None if the instance has no address."""
    peer_id, router = service.meta.get("peer_id") or None, service.meta.get("router", "")
    if peer_id is not None and parse(router) is not None:
        secondary = service.meta.get("also")
        others = (str(Address(secondary, service.port)),) if secondary and 0 < service.port < 65536 else ()
        return PeerInfo(peer_id, (split_peer_id(router)[0], *others))
    if not service.address or not 0 < service.port < 65536:
        return None
    return PeerInfo(None, (str(Address(service.address, service.port)),))
