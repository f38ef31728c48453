"""A timer heap for timers that are mostly postponed.

Each message from a member postpones its probe, and a probe is seldom brought forward.  So an entry is written only
for an earlier moment; an entry that turns out too early is written again with the later moment.  This keeps each step
cheap when thousands of members are lost, probed and found again, because no step scans all of them.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, Protocol, TypeVar


class Due(Protocol):
    """A thing that is due at a moment; infinity is never."""

    noted: float
    """The moment of its entry in the :class:`TimerHeap`, which sets it; initially infinity."""

    @property
    def due_at(self) -> float: ...


T = TypeVar("T", bound=Due)


class TimerHeap(Generic[T]):
    """Things by their moments. Call :meth:`note` whenever a thing becomes due earlier."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def note(self, thing: T) -> None:
        """``thing`` is new, or due earlier than before."""
        moment = thing.due_at
        if moment < thing.noted:
            thing.noted = moment
            heapq.heappush(self._heap, (moment, next(self._order), thing))

    def next(self) -> float:
        """The earliest moment; infinity if nothing is ever due."""
        while self._heap:
            moment, _, thing = self._heap[0]
            if moment == thing.noted == thing.due_at:
                return moment
            heapq.heappop(self._heap)
            if moment == thing.noted:  # otherwise the entry is stale: the thing has another one, or none
                thing.noted = math.inf
                self.note(thing)
        return math.inf

    def due(self, now: float) -> list[T]:
        """The things that are due, the earliest first; each must be noted again."""
        found = []
        while self.next() <= now:
            thing = heapq.heappop(self._heap)[2]
            thing.noted = math.inf
            found.append(thing)
        return found
