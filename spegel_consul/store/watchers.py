"""Watchers of a store: each has one pending change, into which later changes are folded.

A slow watcher must not block the store, and must not make a queue grow. So a key that is added and removed again before
the watcher reads its change does not appear in it. A new rule about the delivery of changes belongs here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from spegel_consul.store import Changed


class Watch:
    """An endless iterator over changes, for one task. The first item adds all that is ``present``, if anything."""

    def __init__(self, present: frozenset[str]) -> None:
        self._added = set(present)
        self._removed: set[str] = set()
        self._ready = trio.Event()
        self._ready.set()

    def fold(self, changed: Changed) -> None:
        """Fold ``changed`` into the next item."""
        cancelled = changed.added & self._removed
        self._removed -= cancelled
        self._added |= changed.added - cancelled
        cancelled = changed.removed & self._added
        self._added -= cancelled
        self._removed |= changed.removed - cancelled
        self._ready.set()

    def __aiter__(self) -> AsyncIterator[Changed]:
        return self

    async def __anext__(self) -> Changed:
        await self._ready.wait()
        self._ready = trio.Event()
        changed = Changed(frozenset(self._added), frozenset(self._removed))
        self._added.clear()
        self._removed.clear()
        return changed


class Watchers:
    """All watches of a store."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    @contextmanager
    def watch(self, present: frozenset[str]) -> Iterator[Watch]:
        """Add a watch, which gets changes until the block ends."""
        watch = Watch(present)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def publish(self, changed: Changed) -> None:
        """Fold ``changed`` into every watch, without waiting."""
        if changed.added or changed.removed:
            for watch in self._watches:
                watch.fold(changed)
