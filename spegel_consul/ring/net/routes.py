"""Route checks for addresses of both families.

A peer of both address families announces its registry twice, and this node may have only one family.  The kernel knows
whether there is a route: connecting a UDP socket asks it without sending a packet.
"""

from __future__ import annotations

import socket

from spegel_consul.multiaddrs import Address


def has_route(address: Address) -> bool:
    """Whether this machine has a route to ``address``, an IP address."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address.host, address.port))
    except OSError:
        return False
    return True
