"""Route checks for addresses of both families.

A peer of both address families announces its registry twice, and this node may have only one family.  The kernel knows
whether there is a route, and from which address of this machine: connecting a UDP socket asks it without sending a
packet.

A Go Spegel names the addresses of all its interfaces, sorted, so that of a bridge such as docker0 may be the first.
Each machine has that bridge, so a question to its address reaches the machine that asks.

A new question about the routes of this machine belongs here.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence

from spegel_consul.multiaddrs import Address


def has_route(address: Address) -> bool:
    """Whether this machine has a route to ``address``, an IP address."""
    return _source(address) is not None


def likeliest(addresses: Sequence[Address], proven: Collection[str]) -> Address:
    """The one of a peer's ``addresses`` at which to look for it, by the hosts at which it was reached."""
    if len(addresses) == 1:
        return addresses[0]
    # a peer behind a port mapping may seem to come from a bridge of this machine
    elsewhere = [each for each in addresses if _source(each) not in (None, each.host)] or addresses
    return next((each for each in elsewhere if each.host in proven), elsewhere[0])


def _source(address: Address) -> str | None:
    """The address of this machine from which ``address`` is reached; itself if it is one of this machine."""
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address.host, address.port))
            return str(probe.getsockname()[0])
    except OSError:
        return None
