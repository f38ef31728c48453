"""The wire format of the ring: Kademlia messages, the member exchange and withdrawals.

The Kademlia messages are those of go-libp2p-kad-dht (pb/dht.proto), each behind its length as a varint.  Two messages
are our own: the member exchange and the withdrawal of keys.  Only the fields that Spegel's use of the DHT fills are
kept; unknown fields are skipped, as protobuf demands.

The codec is hand-written because it is shorter than a generated one and its limits are in plain sight.  Every byte
comes from untrusted peers, and the only error that bytes can cause is a WireError.

A new message or limit of the wire belongs here, with its fuzz test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from itertools import islice
from typing import NamedTuple

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import MAX_PEER_ID, RingError
from spegel_consul.places import NOWHERE, Place, decode_place

MAX_MESSAGE = 4 << 20
"""Longest accepted message, in bytes (go-libp2p network.MessageSizeMax)."""

MAX_KEY = 80
"""Longest accepted key, in bytes (go-libp2p-kad-dht providers.go refuses longer ones)."""

MAX_PEERS = 256
"""Most peers of each kind that are read from a Kademlia message; the rest is skipped."""

MAX_MEMBERS = 8192
"""Most members that are read from one member exchange; the rest is skipped."""

MAX_FIELDS = 2 * MAX_MEMBERS
"""Most fields of one message, because two bytes make one and each takes a microsecond."""

_MAX_ADDRESSES = 16
_PEER_FIELDS, _REPORT_FIELDS = 32, 16  # that are read of a peer, and of a member report
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types
_CONNECTED = b"\x18\x01"  # Message.Peer.connection = CONNECTED
_BRIEF = b"\xa0\x06\x01"  # field 100, which Go skips
_BRIEF_FIELD = 100
_VACANT = b"\xa8\x06\x01"  # field 101
_VACANT_FIELD = 101
_LONGEST_KNOWN = 512  # bytes of an encoded peer that is remembered
_CLUSTER_LEVEL = b"\x50\x01"  # Message.clusterLevelRaw, which Go always sends and never reads


class WireError(RingError):
    """The bytes of a peer are not a message of this protocol."""


class MessageType(IntEnum):
    """The types that Spegel's DHT uses; ADD_PROVIDER has no answer."""

    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


class WirePeer(NamedTuple):
    """A binary peer id with binary multiaddrs, which are not decoded yet."""

    id: bytes
    addresses: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """A Kademlia message; ``key`` is a multihash, or a peer id in FIND_NODE.

    Two fields are our own, and other programs skip them. ``brief``: a question whose answer need not name closer peers.
    ``vacant``: an answer of a node that keeps no claims of the group that the key names, see ``claiming``.
    """

    type: MessageType
    key: bytes = b""
    closer: tuple[WirePeer, ...] = ()
    providers: tuple[WirePeer, ...] = ()
    brief: bool = False
    vacant: bool = False


class MemberReport(NamedTuple):
    """One entry of a member exchange: a peer, the seconds since any node heard from it, and its place.

    The place is a field that older nodes of this program skip and do not send.
    """

    peer: WirePeer
    age: int
    place: Place = NOWHERE


def uvarint(number: int) -> bytes:
    """``number`` as LEB128, the varint of multiformats and protobuf."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def frame(body: bytes) -> bytes:
    """``body`` behind its length as a varint."""
    return uvarint(len(body)) + body


class Frames:
    """Cuts a byte stream into message bodies; buffers at most one unfinished message."""

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that ``data`` completes. Raises WireError if a message is longer than the limit."""
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while start < len(buffer):
            length, at = buffer[start], start + 1
            if length > 0x7F:  # most are of one byte, and 64 KiB may have as many messages
                length, at = _read_length(buffer, start)
            if length > self._limit:
                raise WireError(f"a message of {length} bytes exceeds the limit of {self._limit}")
            if at == start or len(buffer) < at + length:
                break
            bodies.append(bytes(buffer[at : at + length]))
            start = at + length
        del buffer[:start]
        return bodies


def _read_length(buffer: bytearray, start: int) -> tuple[int, int]:
    """The varint at ``start`` and its end; ``(0, start)`` if it is not complete yet."""
    length = 0
    for count, byte in enumerate(buffer[start : start + 5]):
        length |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return length, start + count + 1
    if len(buffer) - start >= 5:
        raise WireError("the length of a message is malformed")
    return 0, start


def encode(message: Message) -> bytes:
    """A framed Kademlia message, byte for byte as go-libp2p-kad-dht writes it."""
    body = bytearray(b"\x08" + uvarint(message.type))
    if message.key:
        body += b"\x12" + frame(message.key)
    # Go leaves the connection out of ADD_PROVIDER, because a provider announces only itself
    connection = b"" if message.type is MessageType.ADD_PROVIDER else _CONNECTED
    for peer in message.closer:
        body += b"\x42" + frame(encode_peer(peer, connection))
    for peer in message.providers:
        body += b"\x4a" + frame(encode_peer(peer, connection))
    body += _CLUSTER_LEVEL
    if message.brief:
        body += _BRIEF
    if message.vacant:
        body += _VACANT
    return frame(bytes(body))


def decode(body: bytes) -> Message:
    """A Kademlia message without its length. Raises WireError for anything else."""
    number = brief = vacant = 0
    key = b""
    closer: list[WirePeer] = []
    providers: list[WirePeer] = []
    for field, value in fields(body):
        if field == 1 and isinstance(value, int):
            number = value
        elif field == 2 and isinstance(value, bytes):
            key = value
        elif field == 8 and isinstance(value, bytes) and len(closer) < MAX_PEERS:
            closer.append(decode_peer(value))
        elif field == 9 and isinstance(value, bytes) and len(providers) < MAX_PEERS:
            providers.append(decode_peer(value))
        elif field == _BRIEF_FIELD and isinstance(value, int):
            brief = value
        elif field == _VACANT_FIELD and isinstance(value, int):
            vacant = value
    try:
        kind = MessageType(number)
    except ValueError:
        raise WireError(f"message type {number} is not one of the ring's") from None
    if len(key) > MAX_KEY:
        raise WireError(f"a key of {len(key)} bytes exceeds the limit of {MAX_KEY}")
    return Message(kind, key, tuple(closer), tuple(providers), bool(brief), bool(vacant))


def encode_members(reports: Iterable[MemberReport]) -> bytes:
    """A framed member exchange."""
    body = bytearray()
    for peer, age, place in reports:
        at = b"\x1a" + frame(place.encode()) if place else b""
        body += b"\x0a" + frame(b"\x0a" + frame(encode_peer(peer)) + b"\x10" + uvarint(age) + at)
    return frame(bytes(body))


def decode_members(body: bytes) -> Iterator[MemberReport]:
    """The reports of a member exchange without its length, one by one because it may be long. Raises WireError."""
    count = 0
    for field, value in fields(body):
        if field != 1 or not isinstance(value, bytes) or count >= MAX_MEMBERS:
            continue
        peer, age, place = b"", 0, b""
        for inner, content in islice(fields(value), _REPORT_FIELDS):
            if inner == 1 and isinstance(content, bytes):
                peer = content
            elif inner == 2 and isinstance(content, int):
                age = content
            elif inner == 3 and isinstance(content, bytes):
                place = content
        if not peer:
            raise WireError("a member report names no peer")
        count += 1
        yield MemberReport(decode_peer(peer), age, decode_place(place))


def encode_withdrawal(keys: Iterable[bytes]) -> bytes:
    """A framed list of keys that the sender no longer has."""
    return frame(b"".join(b"\x0a" + frame(key) for key in keys))


def decode_withdrawal(body: bytes) -> list[bytes]:
    """A withdrawal without its length. Raises WireError for anything else."""
    keys = [value for field, value in fields(body) if field == 1 and isinstance(value, bytes)]
    if any(len(key) > MAX_KEY for key in keys):
        raise WireError(f"a key exceeds the limit of {MAX_KEY} bytes")
    return keys


@lru_cache(maxsize=8192)
def encode_peer(peer: WirePeer, connection: bytes = _CONNECTED) -> bytes:
    """A peer within a message, without its length."""
    addresses = b"".join(b"\x12" + frame(address) for address in peer.addresses)
    return b"\x0a" + frame(peer.id) + addresses + connection


def decode_peer(data: bytes) -> WirePeer:
    """A peer within a message. Raises WireError."""
    # remembered, because the same few members are named in each answer
    return _decode_known_peer(data) if len(data) <= _LONGEST_KNOWN else _decode_peer(data)


def _decode_peer(data: bytes) -> WirePeer:
    peer_id = b""
    addresses: list[bytes] = []
    for field, value in islice(fields(data), _PEER_FIELDS):
        if field == 1 and isinstance(value, bytes):
            peer_id = value
        elif field == 2 and isinstance(value, bytes) and len(addresses) < _MAX_ADDRESSES:
            addresses.append(value)
    if not 0 < len(peer_id) <= MAX_PEER_ID:
        raise WireError(f"a peer id of {len(peer_id)} bytes is invalid")
    return WirePeer(peer_id, tuple(addresses))


_decode_known_peer = lru_cache(maxsize=4096)(_decode_peer)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: the number, and an int or bytes. Raises WireError, also after MAX_FIELDS."""
    at, end, left = 0, len(data), MAX_FIELDS
    while at < end:
        if (left := left - 1) < 0:
            raise WireError(f"a message has more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(data, at)
        elif kind == _FIXED64:
            length = 8
        elif kind == _FIXED32:
            length = 4
        else:
            raise WireError(f"protobuf wire type {kind} is not supported")
        if length > end - at:
            raise WireError("a field is longer than its message")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise WireError("a varint is incomplete or too long")
