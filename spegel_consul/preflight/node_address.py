"""The advertised address: the address at which peers and Consul reach this node.

Without a setting it is the source address of the default route. The kernel chooses it for a connected UDP socket,
without sending a packet. Loopback is advertised only if the registry is bound to it, because on another machine a
loopback address is that machine itself.

One job runs on all nodes, so an operator selects the address by interface, by network, or by a template of Consul's and
Nomad's own bind and advertise settings (go-sockaddr); the four templates that select one address are supported. An
address that this machine does not have is taken unchecked, because behind a bridge network's port mapping it is the
host's.

A new form of ``--advertise-addr`` belongs here.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable
from functools import partial

from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# documentation prefixes (RFC 5737, RFC 3849): on no local network, so the default route decides
_REMOTE_ADDRESSES = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))

_TEMPLATE = re.compile(
    r"""\{\{ \s* (?:
        (?P<kind> GetPrivateIP | GetPublicIP )
      | GetInterfaceIP \s+ "(?P<interface> [^"]+ )"
      | GetAllInterfaces \s* \| \s* include \s+ "network" \s+ "(?P<network> [^"]+ )" \s* \| \s* attr \s+ "address"
    ) \s* \}\}""",
    re.VERBOSE,
)
_TEMPLATES = '{{ GetPrivateIP }}, {{ GetPublicIP }} and {{ GetInterfaceIP "eth0" }}'


class NoAddress(Exception):
    """This node has no address to advertise; the message says how to set one."""


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """One address of one of this machine's interfaces."""

    interface: str
    ip: IPAddress

    def __str__(self) -> str:
        return f"{self.ip} ({self.interface})"

    @property
    def is_reachable(self) -> bool:
        """Whether another machine may reach it: neither loopback nor link-local."""
        return not (self.ip.is_loopback or self.ip.is_link_local)


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """An address to advertise.

    ``again`` chooses an address anew, and raises ValueError or NoAddress; None if an operator gave this very address.
    """

    ip: str
    again: Callable[[], str] | None = None


def advertised(given: tuple[NodeAddress, ...], bound: str) -> NodeAddress:
    """The advertised address: the first of ``given``, else ``bound``, else the source address of the default route.

    ``bound`` is the host of a listening address, empty or unspecified for all interfaces.
    Raises NoAddress if the machine has no default route.
    """
    if given:
        return given[0]
    if bound:
        try:
            address = ipaddress.ip_address(bound)
        except ValueError:
            return _chosen(partial(_resolved, bound))
        if not address.is_unspecified:
            return NodeAddress(str(address))
    return _chosen(default_route_source)


def default_route_source() -> str:
    """The source address of the default route, IPv4 before IPv6. Raises NoAddress."""
    for address in _default_route_sources():
        return address
    raise NoAddress("this machine has no default route, so its address is not known: set --advertise-addr")


def named(text: str) -> str:
    """The IP address that ``text`` selects; the help of ``--advertise-addr`` has the forms.

    Raises ValueError with one line that lists the addresses of this machine.
    """
    address = _literal(text)
    if address is None:
        return str(_choose(text.strip(), local_addresses()))
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{text!r} is not an address that a peer can connect to")
    return str(address)


def one_or_two(text: str) -> tuple[NodeAddress, ...]:
    """The addresses that ``text`` selects: one or, with a comma, one of each IP family. Raises ValueError."""
    addresses = tuple(
        NodeAddress(named(part)) if _literal(part) is not None else _chosen(partial(named, part))
        for part in text.split(",")
    )
    if len(addresses) > 2 or len({":" in address.ip for address in addresses}) < len(addresses):
        these = ", ".join(address.ip for address in addresses)
        raise ValueError(f"{text!r}: give one address, or one of IPv4 and one of IPv6; these are {these}")
    return addresses


def local_addresses() -> tuple[LocalAddress, ...]:
    """All addresses of this machine: those of one interface together, IPv4 before IPv6."""
    import ifaddr  # here, because only the sidecar and preflight ask

    found = []
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            text = each.ip if isinstance(each.ip, str) else each.ip[0]
            found.append(LocalAddress(adapter.nice_name, ipaddress.ip_address(text.partition("%")[0])))
    order = {name: number for number, name in enumerate(dict.fromkeys(local.interface for local in found))}
    return tuple(sorted(found, key=lambda local: (order[local.interface], local.ip.version)))


def _literal(text: str) -> IPAddress | None:
    """The address if ``text`` is one, with or without brackets; None for the other forms."""
    try:
        return ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _chosen(again: Callable[[], str]) -> NodeAddress:
    return NodeAddress(again(), again)


def _choose(text: str, locals_: tuple[LocalAddress, ...]) -> IPAddress:
    usable = [local for local in locals_ if local.is_reachable]
    if text.startswith("{{"):
        shape = _TEMPLATE.fullmatch(text)
        if shape is None:
            raise ValueError(f"{text!r} is not supported; the supported templates of go-sockaddr are {_TEMPLATES}")
        if shape["interface"]:
            return _of_interface(shape["interface"], locals_, usable)
        if shape["network"]:
            return _of_network(shape["network"], usable)
        private = shape["kind"] == "GetPrivateIP"
        routed = {local.interface for local in usable if str(local.ip) in set(_default_route_sources())}
        for local in sorted(usable, key=lambda each: each.ip.version):
            if local.interface in routed and local.ip.is_private is private:
                return local.ip
        what = "private" if private else "public"
        raise _no_match(f"no interface with a default route has a {what} address", usable)
    if "/" in text:
        return _of_network(text, usable)
    return _of_interface(text, locals_, usable)


def _of_interface(name: str, locals_: tuple[LocalAddress, ...], usable: list[LocalAddress]) -> IPAddress:
    for local in [*usable, *(each for each in locals_ if each.ip.is_loopback)]:
        if local.interface == name:
            return local.ip
    raise _no_match(f"{name!r} is neither an IP address nor an interface that has one", usable)


def _of_network(text: str, usable: list[LocalAddress]) -> IPAddress:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not a network: expected something like 10.0.0.0/8 or fd00::/8") from None
    for local in usable:
        if local.ip.version == network.version and local.ip in network:
            return local.ip
    raise _no_match(f"no address in {text}", usable)


def _no_match(problem: str, usable: Iterable[LocalAddress]) -> ValueError:
    return ValueError(f"{problem}; this machine has {', '.join(map(str, usable)) or 'no address but loopback'}")


def _default_route_sources() -> list[str]:
    found = []
    for family, remote in _REMOTE_ADDRESSES:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((remote, 9))
                address = str(probe.getsockname()[0])
        except OSError:
            continue
        if not ipaddress.ip_address(address).is_loopback:
            found.append(address)
    return found


def _resolved(host: str) -> str:
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as exc:
        raise NoAddress(f"host {host!r} can't be resolved ({in_words(exc)}): set --advertise-addr") from None
