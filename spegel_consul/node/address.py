# Peers and Consul must be told an address that they can reach.  The kernel knows which one it would use to
# leave this machine; a connected UDP socket makes it choose without sending a packet.  Loopback is told only
# to those who bound to it, because a loopback address in somebody else's hands points at himself.

"""The address under which this node is reached."""

from __future__ import annotations

import ipaddress
import socket

# documentation prefixes (RFC 5737, RFC 3849): never a neighbour, so the default route decides
_FAR_AWAY = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class NoAddress(Exception):
    """No address can be told to peers; the message says how to give one."""


def advertised(given: str | None, bound: str) -> str:
    """The address to tell others: ``given``, else the one bound to, else that of the route out.

    ``bound`` is the host of a listening address, empty or unspecified for all interfaces.
    Raises NoAddress if the machine has no route out.
    """
    if given is not None:
        return given
    if bound:
        try:
            address = ipaddress.ip_address(bound)
        except ValueError:
            return _resolved(bound)
        if not address.is_unspecified:
            return str(address)
    return route_out()


def route_out() -> str:
    """The source address of the default route, IPv4 before IPv6. Raises NoAddress."""
    for family, far_away in _FAR_AWAY:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far_away, 9))
                address = str(probe.getsockname()[0])
        except OSError:
            continue
        if not ipaddress.ip_address(address).is_loopback:
            return address
    raise NoAddress("this machine has no route out, so its address is not known: set --advertise-addr")


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise NoAddress(f"host {host!r} can't be resolved ({exc}): set --advertise-addr") from None
