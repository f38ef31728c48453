"""A cache of small contents in memory, bounded by bytes.

The cache does not decide whether content may be served: the store's index does, and is asked first. A new rule about
which contents stay in memory belongs here.
"""

from __future__ import annotations

from collections import OrderedDict

from spegel_consul.oci.digest import Digest

LIMIT = 16 << 20
"""Bytes of manifests and other small contents that a node keeps in memory: some thousand manifests."""


class ByteCache:
    """A cache of at most ``limit`` bytes that drops the least recently used content; a limit of 0 keeps nothing.

    Callers put in verified content only. An entry never becomes stale, because content does not change under its
    digest.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        """Return the content, or None if it is not in the cache."""
        content = self._entries.get(digest)
        if content is not None:
            self._entries.move_to_end(digest)
        return content

    def put(self, digest: Digest, content: bytes) -> None:
        """Add the content, and drop the least recently used ones beyond the limit."""
        if len(content) > self._limit or digest in self._entries:
            return
        self._entries[digest] = content
        self._size += len(content)
        while self._size > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._size -= len(dropped)
