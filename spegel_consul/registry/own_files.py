"""Own content as files and cached bytes, for the fast path.

Small content is read completely, verified and kept in memory. Larger content is an open file that the kernel sends. A
new rule about the bytes of own content belongs here; their order on a socket belongs to
:mod:`spegel_consul.registry.fast_path`.
"""

from __future__ import annotations

import os
from functools import partial

from spegel_consul.disk.threads import in_thread
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.plan import Own
from spegel_consul.store import Store
from spegel_consul.store.blob_files import is_blob, open_blob


class OwnFiles:
    """The files of ``store``; small content is kept in ``cache``."""

    def __init__(self, store: Store, cache: ByteCache) -> None:
        self._store = store
        self._cache = cache

    def is_there(self, plan: Own) -> bool:
        """Whether there is a file of the content that matches the index."""
        path = self._store.file(plan.content.digest)
        try:
            return path is not None and is_blob(os.lstat(path), plan.content.size)
        except OSError:
            return False

    def open(self, plan: Own) -> int | None:
        """Return a descriptor of the content's file, or None if the file does not match the index."""
        path = self._store.file(plan.content.digest)
        if path is None:
            return None
        try:
            return open_blob(path, plan.content.size)
        except OSError:
            return None

    def read_small(self, plan: Own, flags: int = os.RWF_NOWAIT) -> bytes | None:
        """Read small content. Return None if it is not in the page cache or does not have its digest."""
        fd = self.open(plan)
        if fd is None:
            return None
        buffer = bytearray(plan.content.size)
        try:
            os.preadv(fd, [buffer], 0, flags)
        except OSError:
            return None
        finally:
            os.close(fd)
        small = bytes(buffer)
        # bytes without the right digest come from a file that is still being written, or from a disk with errors
        return small if plan.content.digest.fits(small) else None

    async def small(self, plan: Own) -> bytes | None:
        """Return small content from the cache or the file, or None if the file does not have its digest."""
        small = self.cached(plan)
        if small is None:
            # a page that is not in the page cache is read in a thread, because the disk may be slow
            read = self.read_small(plan) or await in_thread(partial(self.read_small, plan, 0))
            small = self.keep(plan, read)
        return small

    def keep(self, plan: Own, small: bytes | None) -> bytes | None:
        """Keep small content that was read, if it was; return it."""
        if small is not None:
            self._cache.put(plan.content.digest, small)
        return small

    def cached(self, plan: Own) -> bytes | None:
        """Return cached content if its length is the one that the head says."""
        small = self._cache.get(plan.content.digest)
        return small if small is not None and len(small) == plan.content.size else None
