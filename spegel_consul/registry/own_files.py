"""Own content as files and cached bytes, for the fast path.

Small content is read completely, verified and kept in memory. Larger content is an open file that the kernel sends. A
new rule about the bytes of own content belongs here; their order on a socket belongs to
:mod:`spegel_consul.registry.fast_path`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

from spegel_consul.disk.threads import NoThread, close, in_thread, open_in_thread
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.plan import Own
from spegel_consul.store import Store
from spegel_consul.store.blob_files import open_blob, open_cached

_MOST_THREADS = 32  # of their own, because a disk that hangs keeps them all


class OwnFiles:
    """The files of ``store``; small content is kept in ``cache``."""

    def __init__(self, store: Store, cache: ByteCache) -> None:
        self._store = store
        self._cache = cache
        self._threads = trio.CapacityLimiter(_MOST_THREADS)

    def open_now(self, plan: Own) -> int | None:
        """Return a descriptor of the content's file, or None if the file does not match the index.

        Raises BlockingIOError if the disk may have to be waited for.
        """
        return self._open(plan, open_cached)

    async def open(self, plan: Own) -> int | None:
        """Return what :meth:`open_now` returns, and wait for the disk in a thread if need be."""
        try:
            return self.open_now(plan)
        except BlockingIOError:
            path = self._store.file(plan.content.digest)
        try:
            if path is not None:
                return await open_in_thread(partial(open_blob, path, plan.content.size), self._threads)
        except OSError:
            pass
        return None

    def _open(self, plan: Own, open_it: Callable[[str, int], int]) -> int | None:
        path = self._store.file(plan.content.digest)
        if path is None:
            return None
        try:
            return open_it(path, plan.content.size)
        except OSError as exc:
            if open_it is open_cached and isinstance(exc, BlockingIOError):
                raise
            return None

    async def is_there(self, plan: Own) -> bool:
        """Whether there is a file of the content that matches the index."""
        fd = await self.open(plan)
        if fd is not None:
            close(fd)
        return fd is not None

    def is_there_now(self, plan: Own) -> bool:
        """Whether there is a file of the content that matches the index, as far as that is known without the disk."""
        try:
            fd = self.open_now(plan)
        except BlockingIOError:
            return False
        if fd is not None:
            close(fd)
        return fd is not None

    def read_small_now(self, plan: Own) -> bytes | None:
        """Read small content. Return None if it is not in the page cache or does not have its digest."""
        try:
            return self._read_small(plan, open_cached, os.RWF_NOWAIT)
        except BlockingIOError:
            return None

    def _read_small(self, plan: Own, open_it: Callable[[str, int], int], flags: int = 0) -> bytes | None:
        fd = self._open(plan, open_it)
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
            small = self.read_small_now(plan)
            if small is None:
                with suppress(NoThread):
                    small = await in_thread(partial(self._read_small, plan, open_blob), self._threads)
            small = self.keep(plan, small)
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
