# A watcher that is slow must not make the store wait, nor make a queue grow.  So each watcher has one pending
# Changed, into which later changes are folded: what comes and goes again before the watcher looks was never there.

"""Telling watchers what has changed, folded to one pending change for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from spegel_consul.store import Changed


class Watch:
    """An endless iterator over changes, for one task. The first item tells what is ``present``, be it nothing."""

    def __init__(self, present: frozenset[str]) -> None:
        self._added = set(present)
        self._removed: set[str] = set()
        self._news = trio.Event()
        self._news.set()

    def fold(self, changed: Changed) -> None:
        """Make ``changed`` part of the next item."""
        cancelled = changed.added & self._removed
        self._removed -= cancelled
        self._added |= changed.added - cancelled
        cancelled = changed.removed & self._added
        self._added -= cancelled
        self._removed |= changed.removed - cancelled
        self._news.set()

    def __aiter__(self) -> AsyncIterator[Changed]:
        return self

    async def __anext__(self) -> Changed:
        await self._news.wait()
        self._news = trio.Event()
        changed = Changed(frozenset(self._added), frozenset(self._removed))
        self._added.clear()
        self._removed.clear()
        return changed


class Watchers:
    """All who want to know."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()

    @contextmanager
    def watch(self, present: frozenset[str]) -> Iterator[Watch]:
        """A new watch, told of changes until the block ends."""
        watch = Watch(present)
        self._watches.add(watch)
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    def publish(self, changed: Changed) -> None:
        """Tell everybody, without waiting for anybody."""
        if changed.added or changed.removed:
            for watch in self._watches:
                watch.fold(changed)
