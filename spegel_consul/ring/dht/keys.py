"""Keys of the ring and their positions in the distance space.

A key is a string (a digest or an image name).  On the wire it is the multihash of that string, as Go Spegel makes it
(createCid in pkg/routing).  Distance is measured between the SHA-256 of multihashes, not between the multihashes
themselves, and likewise for peer ids: go-libp2p-kbucket hashes both into one space of 256 bits, in which XOR is the
distance.
"""

from __future__ import annotations

import hashlib

SHA2_256 = b"\x12\x20"
"""The prefix of a SHA-256 multihash."""

KEY_LENGTH = 34
"""Length of a key on the wire, in bytes."""


def dht_key(key: str) -> bytes:
    """The 34-byte sha2-256 multihash of ``key``, as provider records carry it."""
    return SHA2_256 + hashlib.sha256(key.encode()).digest()


def position(raw: bytes) -> int:
    """The position of a multihash or a binary peer id: a number of 256 bits; the XOR of two is their distance."""
    return int.from_bytes(hashlib.sha256(raw).digest(), "big")
