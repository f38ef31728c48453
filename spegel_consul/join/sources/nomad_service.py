"""``NomadServiceSource``: some of the routers in Nomad's catalog, for clusters without Consul.

Nomad can choose for the caller (?choose=1|key), but then all instances must be candidates for it, and an unreachable
one can't be passed over.  So the whole list is read, and three are chosen here by the same hash as from Consul's
catalog.  The service must be the router's alone, with one port.

A new rule about the instances of a Nomad service belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence

from spegel_consul.join.sources.consul_catalog import rendezvous
from spegel_consul.join.sources.nomad_api import NomadClient, NomadError
from spegel_consul.multiaddrs import Address
from spegel_consul.peers import PeerInfo


class NomadServiceSource:
    """Asks for the instances of ``service``. ``me`` is this node, and ``alloc_id`` its allocation if known."""

    def __init__(self, client: NomadClient, service: str, me: PeerInfo, alloc_id: str | None = None) -> None:
        self._client = client
        self._service = service
        self._me = me
        self._alloc_id = alloc_id

    @property
    def name(self) -> str:
        return f"nomad-service {self._service}"

    async def ask(self) -> Sequence[PeerInfo]:
        """Up to three other instances. Raises SourceError."""
        _, document = await self._client.request("GET", f"/v1/service/{self._service}", params={"stale": ""})
        if not isinstance(document, list):
            raise NomadError("not an answer of Nomad's")
        routers: dict[str, str] = {}
        for entry in document:
            if not isinstance(entry, dict) or (self._alloc_id and entry.get("AllocID") == self._alloc_id):
                continue
            address, port = entry.get("Address"), entry.get("Port")
            if isinstance(address, str) and address and isinstance(port, int) and 0 < port < 65536:
                router = str(Address(address, port))
                if router not in self._me.addrs:
                    routers[router] = router
        return [PeerInfo(None, (router,)) for router in rendezvous(list(routers), self._me.id or "")]
