# A key is a string (a digest or an image name), and on the wire it is the multihash of that string, as Go
# Spegel makes it (createCid in pkg/routing).  Distance is not measured between multihashes but between
# their SHA-256, and likewise for peer ids: go-libp2p-kbucket hashes both into one space of 256 bits, and
# XOR there is distance.

"""Keys of the ring and their place in the distance space."""

from __future__ import annotations

import hashlib

SHA2_256 = b"\x12\x20"
"""How the multihash of a SHA-256 begins."""

KEY_LENGTH = 34
"""Bytes of a key on the wire."""


def dht_key(key: str) -> bytes:
    """The 34-byte sha2-256 multihash of ``key``; what travels in provider records."""
    return SHA2_256 + hashlib.sha256(key.encode()).digest()


def position(raw: bytes) -> int:
    """Where a multihash or a binary peer id lies: a number of 256 bits; the XOR of two is their distance."""
    return int.from_bytes(hashlib.sha256(raw).digest(), "big")
