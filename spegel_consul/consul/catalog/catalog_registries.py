# A password goes to the process that listens at an address and port, so an entry is compared with both.  An entry that
# a sidecar made names its peer id too.  One that Nomad's job or the agent's configuration made has no metadata: it
# names a process just as exactly, by its address and port, and says nothing of the id, which nobody proves over HTTP.

"""The registries that Consul's catalog names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch


class CatalogRegistries:
    """The healthy instances of ``spegel`` as ``watch`` has them; none before there is one, or before its answer."""

    def __init__(self) -> None:
        self.watch: CatalogWatch | None = None
        self._of: tuple[HealthyService, ...] = ()
        self._known: Mapping[tuple[str, int], frozenset[str]] = {}

    def known(self) -> Mapping[tuple[str, int], frozenset[str]]:
        """The peer ids that entries name by ``(IP address, port)``; none where no entry for that address names one."""
        if self.watch is not None and self.watch.members is not self._of:
            self._of = self.watch.members
            self._known = registries(self._of)
        return self._known


def registries(services: Iterable[HealthyService]) -> dict[tuple[str, int], frozenset[str]]:
    """See :meth:`CatalogRegistries.known`. A secondary address (``also`` in the metadata) has the same port.

    Entries without an IP address or a port are left out, because a provider record names both.
    """
    found: dict[tuple[str, int], frozenset[str]] = {}
    for service in services:
        named = frozenset(filter(None, [service.meta.get("peer_id")]))
        for address in (service.address, service.meta.get("also")):
            if address and 0 < service.port < 65536:
                try:
                    # one address has many texts in IPv6, and a provider record has the canonical one
                    key = str(ipaddress.ip_address(address)), service.port
                except ValueError:
                    continue
                found[key] = found.get(key, frozenset()) | named
    return found
