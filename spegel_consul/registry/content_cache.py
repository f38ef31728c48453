"""A cache of small contents, bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict

from spegel_consul.oci.digest import Digest

LIMIT = 16 << 20
"""Bytes of manifests and other small contents that a node keeps in memory: some thousand manifests."""


class ByteCache:
    """Keeps what was used last, up to ``limit`` bytes; 0 keeps nothing.

    What is put in has been verified and never changes under its digest; whether the node has it at all is for the
    store's index to say, before this is asked.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._entries: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        """The content, if it is kept."""
        content = self._entries.get(digest)
        if content is not None:
            self._entries.move_to_end(digest)
        return content

    def put(self, digest: Digest, content: bytes) -> None:
        """Keep the content, in place of others that were not used for longest."""
        if len(content) > self._limit or digest in self._entries:
            return
        self._entries[digest] = content
        self._size += len(content)
        while self._size > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._size -= len(dropped)
