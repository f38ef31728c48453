"""``CatalogRegistries``: the registries that Consul's catalog names.

A password goes to the process that listens at an address and port, so a registry is compared by both.  The entry of a
sidecar names its peer id too.  The entry of a Nomad job or of the agent's configuration has no metadata: it names a
process just as exactly by its address and port, and has no id, which no registry proves over HTTP.

A new rule about the entries that count as a registry belongs here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch


class CatalogRegistries:
    """The healthy instances of ``spegel`` in ``watch``; empty before the watch is set, and before its first answer."""

    def __init__(self) -> None:
        self.watch: CatalogWatch | None = None
        self._of: tuple[HealthyService, ...] = ()
        self._known: Mapping[tuple[str, int], frozenset[str]] = {}

    def known(self) -> Mapping[tuple[str, int], frozenset[str]]:
        """The peer ids of the entries, by ``(IP address, port)``; an empty set if no entry of that address has one."""
        if self.watch is not None and self.watch.members is not self._of:
            self._of = self.watch.members
            self._known = registries(self._of)
        return self._known


def registries(services: Iterable[HealthyService]) -> dict[tuple[str, int], frozenset[str]]:
    """As :meth:`CatalogRegistries.known`. A secondary address (``also`` in the metadata) has the same port.

    Entries without an IP address or a port are left out, because a provider record has both.
    """
    found: dict[tuple[str, int], frozenset[str]] = {}
    for service in services:
        named = frozenset(filter(None, [service.meta.get("peer_id")]))
        for address in (service.address, service.meta.get("also")):
            if address and 0 < service.port < 65536:
                try:
                    # the canonical text, as in a provider record, because an IPv6 address has many
                    key = str(ipaddress.ip_address(address)), service.port
                except ValueError:
                    continue
                found[key] = found.get(key, frozenset()) | named
    return found
