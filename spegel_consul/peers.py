"""Peers: their ids, addresses and errors, and the providers of content.

A peer id is the multihash of a peer's public key (libp2p peer-ids spec).  An Ed25519 key is short enough to be kept as
it is, under the "identity" hash, so an id of this program is always the same 38 bytes around the key.  Inside the ring
ids are these bytes; text in base58 is for people and for PeerInfo.

A fact about a peer that several packages need belongs here.
"""

from __future__ import annotations

from dataclasses import field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.places import NOWHERE, Place


class RingError(Exception):
    """An operation of the ring failed; the message says why, for people."""


class PeerError(Exception):
    """A peer gave no acceptable answer, or failed in the middle of a body; the message has the reason.

    ``hung``: the peer missed a deadline, and would probably miss the next one too; ``broken``: its bytes are no answer
    to the question, or more than it promised, and no node refuses content in this way.
    """

    def __init__(self, message: str, *, hung: bool = False, broken: bool = False) -> None:
        super().__init__(message)
        self.hung = hung
        self.broken = broken


MAX_PEER_ID = 64
"""Size limit of a binary peer id from other peers, in bytes; real ones have 34 to 42."""

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGIT = {character: number for number, character in enumerate(_ALPHABET)}
_ED25519_IDENTITY = b"\x00\x24\x08\x01\x12\x20"


def in_url(host: str) -> str:
    """``host`` in the form for a URL or before a port: IPv6 in brackets (RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def host_port(host: str, port: int) -> str:
    """``10.0.0.7:5000`` or ``[fd00::7]:5000``."""
    return f"{in_url(host)}:{port}"


def unmapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address in an IPv4-mapped IPv6 one (RFC 4291, 2.5.5.2), the form of IPv4 clients at an IPv6 socket."""
    return getattr(address, "ipv4_mapped", None) or address


def unmapped_host(host: str) -> str:
    """The same for an address as text."""
    return str(unmapped(ip_address(host)))


def is_mapped(address: IPv4Address | IPv6Address) -> bool:
    """Whether it is IPv4-mapped: it is dialled as IPv4, but checks for IPv4 and for IPv6 addresses miss it."""
    return unmapped(address) is not address


def peer_id_of_ed25519(public_key: bytes) -> bytes:
    """The id of the peer with this raw 32-byte public key."""
    return _ED25519_IDENTITY + public_key


@lru_cache(maxsize=8192)
def peer_id_to_text(raw: bytes) -> str:
    """base58 of a binary peer id: ``12D3KooW…``."""
    number = int.from_bytes(raw, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_ALPHABET[digit])
    zeros = len(raw) - len(raw.lstrip(b"\0"))
    return "1" * zeros + "".join(reversed(digits))


def peer_id_from_text(text: str) -> bytes:
    """The binary form of a base58 peer id. Raises RingError if it is none, or if peers would refuse it."""
    if not 0 < len(text) <= 2 * MAX_PEER_ID:
        raise RingError(f"peer id {text[:100]!r} has an impossible length")
    number = 0
    for character in text:
        if character not in _DIGIT:
            raise RingError(f"peer id {text[:100]!r} is not base58")
        number = number * 58 + _DIGIT[character]
    zeros = len(text) - len(text.lstrip("1"))
    raw = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    if len(raw) > MAX_PEER_ID:
        raise RingError(f"peer id {text[:100]!r} has {len(raw)} bytes, more than {MAX_PEER_ID}")
    return raw


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is the base58 form of a multihash (code and length of one byte each, then the digest)."""
    try:
        raw = peer_id_from_text(text)
    except RingError:
        return False
    return len(raw) > 2 and raw[1] == len(raw) - 2


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer's id and the addresses of its router.

    ``id`` is the base58 peer id, or None if unknown (the connection then tells it).
    ``addrs`` are multiaddrs of its router without the ``/p2p`` part: ``/ip4/10.0.0.7/tcp/5001``.
    With ``proven`` it is joined only if it still has this id, because another cluster may have the address now.
    """

    id: str | None
    addrs: tuple[str, ...]
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """A peer that announced a key, and the address of its registry.

    ``registry`` is ``(host, port)``; the host is an IP address without brackets. ``secondary`` is the registry's
    address of the other IP family. It is dialled if the first address does not answer. ``place`` is what the peer says
    of itself; ``rtt``: seconds of a round trip to it, None if none was measured.
    """

    peer_id: str
    registry: tuple[str, int]
    secondary: tuple[str, int] | None = field(default=None, compare=False)
    place: Place = field(default=NOWHERE, compare=False)
    rtt: float | None = field(default=None, compare=False)

    @property
    def by_secondary(self) -> Provider | None:
        """The same peer with its secondary address first; None if it has none."""
        if self.secondary is None:
            return None
        return replace(self, registry=self.secondary, secondary=self.registry)
