"""A cache of small contents in memory, bounded by bytes.

The cache does not decide whether content may be served: the store's index does, and is asked first. Content that the
store has no more is never asked for again, so it is dropped after a while; otherwise a node through which many images
pass would fill the cache with it. A new rule about which contents stay in memory belongs here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from spegel_consul.oci.digest import Digest

LIMIT = 8 << 20
"""Bytes of manifests and other small contents that a node keeps in memory: some thousand manifests."""

_CHECKS = 128
"""Checks for content that is gone, while as many bytes as the limit are added."""


class ByteCache:
    """A cache of at most ``limit`` bytes that drops the least recently used content; a limit of 0 keeps nothing.

    ``is_there``: whether the store still has a content; content that it lost is at most 1/128 of the limit.
    Callers put in verified content only. An entry never becomes stale, because content does not change under its
    digest.
    """

    def __init__(self, limit: int = LIMIT, is_there: Callable[[Digest], bool] = lambda digest: True) -> None:
        self._limit = limit
        self._is_there = is_there
        self._size = 0
        self._added = 0
        self._entries: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        """Return the content, or None if it is not in the cache."""
        content = self._entries.get(digest)
        if content is not None:
            self._entries.move_to_end(digest)
        return content

    def put(self, digest: Digest, content: bytes) -> None:
        """Add the content, and drop the least recently used ones beyond the limit and, now and then, what is gone."""
        if len(content) > self._limit or digest in self._entries:
            return
        self._entries[digest] = content
        self._size += len(content)
        self._added += len(content)
        if self._added > self._limit // _CHECKS:
            self._added = 0
            for gone in [each for each in self._entries if not self._is_there(each)]:
                self._size -= len(self._entries.pop(gone))
        while self._size > self._limit:
            _, dropped = self._entries.popitem(last=False)
            self._size -= len(dropped)
