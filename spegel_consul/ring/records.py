# The provider records that this node holds for others: key -> who has it, and until when that may be
# believed.  A provider announces again every 15 minutes and a record is valid for 19, as in Spegel, so one
# lost announcement costs nothing and a dead provider is forgotten even where nobody noticed its death.
# There is no way to take a record back in Kademlia; a mirror that gets a 404 goes to the next provider.
#
# Both the whole and the share of one peer are bounded: a peer that floods loses its own newest records
# only.

"""Provider records, with expiry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

VALIDITY = 19 * 60.0
"""Seconds for which a record is believed (Spegel: 15 min between announcements + 2 x 2 min of delay)."""


class Records:
    """Who said to have what, without clock: ``now`` is seconds on any monotonic scale."""

    def __init__(
        self, *, validity: float = VALIDITY, capacity: int = 1_000_000, capacity_per_peer: int = 50_000
    ) -> None:
        self._validity = validity
        self._capacity = capacity
        self._capacity_per_peer = capacity_per_peer
        self._expiry: dict[bytes, dict[bytes, float]] = {}
        self._count: Counter[bytes] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, key: bytes, peer: bytes, now: float) -> bool:
        """Note that ``peer`` has ``key``. False if there is no room."""
        holders = self._expiry.get(key)
        if holders is None or peer not in holders:
            if self._count[peer] >= self._capacity_per_peer or self._size >= self._capacity:
                return False
            self._count[peer] += 1
            self._size += 1
            holders = self._expiry.setdefault(key, {})
        holders[peer] = now + self._validity
        return True

    def providers(self, key: bytes, now: float) -> list[bytes]:
        """The peers that have ``key``, as far as is known."""
        return [peer for peer, expiry in self._expiry.get(key, {}).items() if expiry > now]

    def keys(self) -> list[bytes]:
        """All keys, for :meth:`sweep` in slices."""
        return list(self._expiry)

    def sweep(self, keys: Iterable[bytes], now: float) -> None:
        """Drop what has expired of ``keys``."""
        for key in keys:
            holders = self._expiry.get(key, {})
            for peer in [peer for peer, expiry in holders.items() if expiry <= now]:
                del holders[peer]
                self._size -= 1
                self._count[peer] -= 1
                if not self._count[peer]:
                    del self._count[peer]
            if not holders:
                self._expiry.pop(key, None)
