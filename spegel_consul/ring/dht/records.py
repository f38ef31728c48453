"""The provider records that this node holds for others: key -> providers, each with an expiry.

A provider announces again every 15 minutes and a record is valid for 19, as in Spegel.  So one lost announcement costs
nothing, and a dead provider is forgotten even by nodes that did not notice its death.

There can be a million records, and a dict entry with its objects takes hundreds of bytes.  So a record is a row of 28
bytes - a hash of the key, the number of the peer, the expiry - in one of many short bytearrays, found by
bytearray.find.  The table grows by linear hashing (Litwin 1980): whenever there are too many rows, one bytearray is
split in two, so no insertion ever waits until all rows are moved.  The hash is keyed, so that a peer can't
choose keys that all fall into one bytearray.

The total and the share of one peer are bounded: a peer that floods loses only its own newest records.

A peer that leaves is forgotten at once, because its records of before are void from then on.  The next sweep drops
them, and those that have expired, so no peer that leaves makes this node visit the whole table.

A new bound on records belongs here; the decision whether a key may be kept at all belongs in ``responder``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import blake2b

VALIDITY = 19 * 60.0
"""Seconds for which a record is valid (Spegel: 15 min between announcements + 2 x 2 min of delay)."""

_ROW = struct.Struct("<16sId")  # key's hash, peer's number, expiry
_ID, _HASH = 20, 16  # leading bytes of a row that identify the record, and the key
_ROWS_PER_BUCKET = 24
_LONG = 200 * _ROW.size  # bytes; most rows of a longer bucket are of one key, which no split divides
_SLICE = 64  # buckets that a sweep visits in one step


class Records:
    """The table of records; ``now`` is seconds of any monotonic clock."""

    def __init__(
        self, *, validity: float = VALIDITY, capacity: int = 1_000_000, capacity_per_peer: int = 50_000
    ) -> None:
        self._validity = validity
        self._capacity = capacity
        self._capacity_per_peer = capacity_per_peer
        self._secret = os.urandom(16)
        self._buckets = [bytearray()]
        self._level = 0  # there are 2**level buckets, and one more for each that was split
        self._size = 0
        self._number: dict[bytes, int] = {}
        self._peer: dict[int, bytes] = {}
        self._count: dict[int, int] = {}
        self._void: dict[int, float] = {}  # of peers that left: the latest expiry of a record from before
        self._next = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: bytes, peer: bytes, now: float) -> bool:
        """Record that ``peer`` has ``key``. False if the table, or the peer's share of it, is full."""
        number = self._number.get(peer, self._next)
        hashed = self._hash(key)
        bucket = self._bucket(hashed)
        row = _ROW.pack(hashed, number, now + self._validity)
        at = _find(bucket, row[:_ID])
        if at >= 0:
            bucket[at : at + _ROW.size] = row
            return True
        count = self._count.get(number, 0)
        if count >= self._capacity_per_peer or self._size >= self._capacity:
            return False
        if number == self._next:
            self._next += 1
            self._number[peer], self._peer[number] = number, peer
        self._count[number] = count + 1
        bucket += row
        self._size += 1
        if self._size > _ROWS_PER_BUCKET * len(self._buckets):
            self._split()
        return True

    def remove(self, key: bytes, peer: bytes) -> None:
        """Drop the record of ``peer`` for ``key``, if there is one."""
        number = self._number.get(peer)
        if number is not None:
            hashed = self._hash(key)
            bucket = self._bucket(hashed)
            at = _find(bucket, hashed + number.to_bytes(4, "little"))
            if at >= 0:
                self._drop(bucket, at)

    def forget(self, peer: bytes, now: float) -> None:
        """Hide the present records of ``peer``; they count towards its share until the next :meth:`sweep`."""
        if (number := self._number.get(peer)) is not None:
            self._void[number] = now + self._validity

    def is_full_of(self, peer: bytes) -> bool:
        """Whether ``peer`` has used up its share of the table."""
        return self._count.get(self._number.get(peer, -1), 0) >= self._capacity_per_peer

    def providers(self, key: bytes, now: float) -> list[bytes]:
        """The peers with a valid record for ``key``."""
        hashed = self._hash(key)
        bucket, void = self._bucket(hashed), self._void.get
        if len(bucket) > _LONG:
            return [
                self._peer[number]
                for row, number, expiry in _ROW.iter_unpack(bucket)
                if row == hashed and now < expiry > void(number, now)
            ]
        found = []
        at = _find(bucket, hashed)
        while at >= 0:
            _, number, expiry = _ROW.unpack_from(bucket, at)
            if now < expiry > void(number, now):
                found.append(self._peer[number])
            at = _find(bucket, hashed, at + _ROW.size)
        return found

    def held_of(self, peer: bytes) -> int:
        """The number of records of ``peer``, with those that the next sweep drops."""
        return self._count.get(self._number.get(peer, -1), 0)

    def sweep(self, now: float) -> Iterator[None]:
        """Drop records that have expired or are void, some buckets with each step of the iterator."""
        index, void = 0, self._void.get
        while index < len(self._buckets):  # the table may grow meanwhile; rows that moved to the end are visited there
            bucket = self._buckets[index]
            for at in range(len(bucket) - _ROW.size, -1, -_ROW.size):
                _, number, expiry = _ROW.unpack_from(bucket, at)
                if not now < expiry > void(number, now):
                    self._drop(bucket, at)
            index += 1
            if index % _SLICE == 0:
                yield

    def _hash(self, key: bytes) -> bytes:
        return blake2b(key, digest_size=_HASH, key=self._secret).digest()

    def _bucket(self, hashed: bytes) -> bytearray:
        number = int.from_bytes(hashed[:4], "little")
        index = number & ((2 << self._level) - 1)
        if index >= len(self._buckets):
            index = number & ((1 << self._level) - 1)
        return self._buckets[index]

    def _split(self) -> None:
        """Split the next bucket: about half of its rows move to a new one at the end."""
        source = self._buckets[len(self._buckets) - (1 << self._level)]
        bit = 1 << self._level
        stay, move = bytearray(), bytearray()
        for at in range(0, len(source), _ROW.size):
            row = source[at : at + _ROW.size]
            (move if int.from_bytes(row[:4], "little") & bit else stay).extend(row)
        source[:] = stay
        self._buckets.append(move)
        if len(self._buckets) == 2 << self._level:
            self._level += 1

    def _drop(self, bucket: bytearray, at: int) -> None:
        _, number, _ = _ROW.unpack_from(bucket, at)
        bucket[at : at + _ROW.size] = bucket[-_ROW.size :]
        del bucket[-_ROW.size :]
        self._size -= 1
        self._count[number] -= 1
        if not self._count[number]:
            del self._count[number]
            self._void.pop(number, None)
            del self._number[self._peer.pop(number)]


def _find(bucket: bytearray, prefix: bytes, start: int = 0) -> int:
    """The offset of the first row at or after ``start`` that starts with ``prefix``; -1 if there is none."""
    at = bucket.find(prefix, start)
    while at > 0 and at % _ROW.size:
        at = bucket.find(prefix, at + 1)
    return at
