# A provider record says where a registry listens, and whoever is in the ring can write one.  Followed blindly it would
# make this node ask any address for anybody: a metadata service, a neighbour's administration port.

"""Which addresses may be asked for content."""

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
"""Where clouds keep metadata besides link-local addresses: AWS and Google over IPv6, Alibaba, Azure, Oracle."""


class PeerPolicy(enum.Enum):
    """``any``: every address that a node could have; ``catalog``: only the registries in Consul's catalog."""

    ANY = "any"
    CATALOG = "catalog"


Permits = Callable[[Provider], bool]
"""Whether a provider may be asked."""


def any_node(provider: Provider) -> bool:
    """Whether its address could be a node's: none where clouds keep their metadata, no group of hosts, no other form of
    an IPv4 address."""
    return _could_be_a_node(provider.registry[0])


def one_of(registries: Callable[[], Mapping[tuple[str, int], Collection[str]]]) -> Permits:
    """Only those whose address and port ``registries()`` has now, with the peer ids that may be there; if it has none
    for an address, then under any id."""

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
