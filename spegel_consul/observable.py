"""``Observable``: a value that tasks can await to change.

A waiter passes the value that it knows, so a change between its reading and its waiting is not lost.  Values that
lasted only for an instant may be left out, because a waiter is told the current value and not the history.  ``key``
selects the part of a value whose change counts, for values in which the order or a time stamp is without meaning.

All calls come from Trio's own thread.  A signal without a value (a timer brought forward, a queue that has an item)
does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Observable(Generic[T]):
    """Holds ``value``. Two values with equal keys are the same one; by default each value is its own key."""

    def __init__(self, value: T, key: Callable[[T], object] = lambda value: value) -> None:
        self._value = value
        self._key = key
        self._changed = trio.Event()

    @property
    def value(self) -> T:
        """The current value."""
        return self._value

    def set(self, value: T) -> bool:
        """Replace the value and wake the waiters; returns False and keeps the old value if its key is the same."""
        if self._key(value) == self._key(self._value):
            return False
        self._value = value
        if self._changed.statistics().tasks_waiting:
            self._changed.set()
            self._changed = trio.Event()
        return True

    async def changed(self, since: T) -> T:
        """Return the value as soon as its key differs from that of ``since``."""
        await trio.lowlevel.checkpoint()
        known = self._key(since)
        while self._key(self._value) == known:
            await self._changed.wait()
        return self._value
