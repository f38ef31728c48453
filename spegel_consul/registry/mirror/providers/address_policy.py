"""The policy of addresses: which addresses may be asked for content.

A provider record names the address of a registry, and every member of the ring can write one. Without a policy, a
record could make this node send requests to any address: a metadata service, or a neighbour's administration port.

A new rule belongs here if it bars an address whatever its peer does. Bars because of behaviour belong to
:mod:`spegel_consul.registry.mirror.providers.penalties`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache

from spegel_consul.peers import Provider, is_mapped

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
"""Metadata services besides the link-local ones: AWS and Google over IPv6, Alibaba, Azure, Oracle."""


class PeerPolicy(enum.Enum):
    """``any``: every address that a node could have; ``catalog``: only the registries in Consul's catalog."""

    ANY = "any"
    CATALOG = "catalog"


Permits = Callable[[Provider], bool]
"""Whether a provider may be asked."""


def any_node(provider: Provider) -> bool:
    """Whether the provider's address could be a node's: no metadata service, no multicast or other special address, no
    IPv4-mapped IPv6 address."""
    return _could_be_a_node(provider.registry[0])


def one_of(registries: Callable[[], Mapping[tuple[str, int], Collection[str]]]) -> Permits:
    """Return the policy that permits only addresses and ports in ``registries()``, with the peer IDs listed there.

    An entry without peer IDs permits any ID.
    """

    def permits(provider: Provider) -> bool:
        ids = registries().get(provider.registry)
        return ids is not None and (not ids or provider.peer_id in ids) and any_node(provider)

    return permits


@lru_cache(4096)
def _could_be_a_node(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if address in _METADATA or is_mapped(address):
        return False
    return not (address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved)
