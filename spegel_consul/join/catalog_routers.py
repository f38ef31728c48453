# The routers of the catalog.  Each says of itself in its meta who it is and where (peer_id, router); an instance
# that somebody else registered, such as Nomad, says only where, and its id is learnt when it is dialled.

"""Routers as a catalog names them."""

from __future__ import annotations

from collections.abc import Sequence

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.join.peer_formats import router_addr
from spegel_consul.peers import PeerInfo


class CatalogRouters:
    """All instances of ``catalog`` (of ``spegel-router``) as peers; what it watches is kept fresh elsewhere."""

    def __init__(self, catalog: CatalogWatch) -> None:
        self._catalog = catalog
        self._of: tuple[HealthyService, ...] = ()
        self._routers: tuple[PeerInfo, ...] = ()

    def routers(self) -> Sequence[PeerInfo]:
        """One peer for each id, or address where there is no id."""
        if self._catalog.members is not self._of:
            self._of = self._catalog.members
            found = [peer for peer in map(to_peer, self._of) if peer is not None]
            self._routers = tuple({peer.id or peer.addrs: peer for peer in found}.values())
        return self._routers


def to_peer(service: HealthyService) -> PeerInfo | None:
    """The router behind an instance; None if it names no address."""
    peer_id, router = service.meta.get("peer_id") or None, service.meta.get("router", "")
    if peer_id is not None and router.startswith("/"):
        also = service.meta.get("also")
        others = (router_addr(also, service.port),) if also and 0 < service.port < 65536 else ()
        return PeerInfo(peer_id, (router.removesuffix(f"/p2p/{peer_id}"), *others))
    if not service.address or not 0 < service.port < 65536:
        return None
    return PeerInfo(None, (router_addr(service.address, service.port),))
