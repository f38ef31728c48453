"""Multiaddrs: the addresses of routers and registries.

A multiaddr is a chain of protocols, each a number and a value.  The ring dials only TCP, and untrusted bytes must never
surprise it, so this is not a multiaddr library: it reads the few chains that the ring can use (/ip4|ip6|dns/…/tcp/…,
with an optional /http and an optional /p2p/<peer id> behind) and returns None for all others.

Every peer has two: the address of its router (/ip4/10.0.0.7/tcp/5001) and the address of its registry
(/ip4/10.0.0.7/tcp/5000/http).  Go nodes know only the first; by their convention all registries use one port.

A new form of address belongs here, in the binary and in the text reader.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from functools import lru_cache

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import is_mapped

_IP4, _TCP, _IP6, _P2P, _HTTP = 4, 6, 41, 421, 480  # multicodec table
_HTTP_BYTES, _P2P_BYTES = b"\xe0\x03", b"\xa5\x03"  # the last two as varints
_MAX_BYTES, _MAX_TEXT, _MOST_ADDRESSES = 160, 400, 16
_NAMES = frozenset({"dns", "dns4", "dns6"})
# the names that a resolver accepts (RFC 1035, and the underscore that some sites use); others in ASCII form, xn--…
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP endpoint: ``host`` is an IP address, or a name if a bootstrap gave one.

    ``http`` distinguishes the address of a registry from that of a router.
    """

    host: str
    port: int
    http: bool = False

    def __str__(self) -> str:
        try:
            family = "ip6" if ipaddress.ip_address(self.host).version == 6 else "ip4"
        except ValueError:
            family = "dns"
        return f"/{family}/{self.host}/tcp/{self.port}" + ("/http" if self.http else "")

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.host

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def is_usable(self, *, loopback: bool) -> bool:
        """Whether others can dial it; loopback addresses count only with ``loopback`` (all peers on one machine)."""
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        # an IPv4-mapped address (RFC 4291, 2.5.5.2) is dialled as IPv4, and would bypass the other tests
        if self.port == 0 or ip.is_unspecified or ip.is_multicast or is_mapped(ip):
            return False
        return loopback or not ip.is_loopback

    def encode(self) -> bytes:
        """The binary multiaddr. Raises ValueError if ``host`` is a name."""
        return _encode(self)


@lru_cache(maxsize=16384)
def _encode(address: Address) -> bytes:
    ip = ipaddress.ip_address(address.host)
    family = _IP6 if ip.version == 6 else _IP4
    tail = _HTTP_BYTES if address.http else b""
    return bytes([family]) + ip.packed + bytes([_TCP]) + struct.pack("!H", address.port) + tail


@lru_cache(maxsize=16384)
def decode(raw: bytes) -> Address | None:
    """The address in a binary multiaddr from the wire; None if it is not TCP over IP, or malformed."""
    if len(raw) > _MAX_BYTES or len(raw) < 8:
        return None
    if raw[0] == _IP4:
        packed, rest = raw[1:5], raw[5:]
    elif raw[0] == _IP6 and len(raw) >= 20:
        packed, rest = raw[1:17], raw[17:]
    else:
        return None
    if len(rest) < 3 or rest[0] != _TCP:
        return None
    (port,) = struct.unpack("!H", rest[1:3])
    rest = rest[3:]
    http = rest.startswith(_HTTP_BYTES)
    if http:
        rest = rest[2:]
    if rest and not rest.startswith(_P2P_BYTES):
        return None  # a protocol above TCP that the ring does not speak
    return Address(str(ipaddress.ip_address(packed)), port, http)


def parse(text: str) -> Address | None:
    """The address in the text of a multiaddr; None if it is not TCP over IP or a DNS name."""
    # checked before it is remembered, because a text may have megabytes
    return _parse(text) if len(text) <= _MAX_TEXT else None


@lru_cache(maxsize=16384)
def _parse(text: str) -> Address | None:
    parts = text.split("/")
    if len(parts) < 5 or parts[0] or parts[3] != "tcp":
        return None
    family, host, port, rest = parts[1], parts[2], parts[4], parts[5:]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        return None
    if family in ("ip4", "ip6"):
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return None
        if f"ip{ip.version}" != family or "%" in host:
            return None
        host = str(ip)
    elif family not in _NAMES or not _NAME.match(host):
        return None
    http = rest[:1] == ["http"]
    if http:
        rest = rest[1:]
    if rest and (len(rest) != 2 or rest[0] != "p2p"):
        return None  # such as /p2p/<id>/p2p-circuit, the address of a relay
    return Address(host, int(port), http)


def split_peer_id(text: str) -> tuple[str, str | None]:
    """The text of a multiaddr before its ``/p2p`` part, and the peer id in that part; None if it has no such part."""
    address, separator, peer_id = text.partition("/p2p/")
    return address, peer_id if separator else None


@dataclass(frozen=True, slots=True)
class Contact:
    """A binary peer id, the addresses of its router, and the address of its registry if it was announced.

    ``secondary`` is the registry's secondary address (the other address family), if it has one.
    """

    id: bytes
    routers: tuple[Address, ...]
    registry: Address | None = None
    secondary: Address | None = None


def contact(peer: bytes, raw_addresses: tuple[bytes, ...], *, loopback: bool) -> Contact:
    """Sort a peer's binary multiaddrs into a :class:`Contact`, without addresses that can't be dialled."""
    # shortened before it is remembered, because a peer may name megabytes
    short = tuple(raw for raw in raw_addresses[:_MOST_ADDRESSES] if len(raw) <= _MAX_BYTES)
    return _known_contact(peer, short, loopback)


@lru_cache(maxsize=8192)
def _known_contact(peer: bytes, raw_addresses: tuple[bytes, ...], loopback: bool) -> Contact:
    found = [
        address
        for address in (decode(raw) for raw in raw_addresses)
        if address is not None and address.is_usable(loopback=loopback)
    ]
    registry = next((address for address in found if address.http), None)
    secondary = next((each for each in found if registry and each.http and each.is_ipv6 != registry.is_ipv6), None)
    return Contact(peer, tuple(dict.fromkeys(address for address in found if not address.http)), registry, secondary)
