# A member's probe is put off with every message that comes from it, which is most of what happens, and seldom brought
# forward.  So an entry is written only for an earlier moment, and one that comes too early is written again: with
# thousands of members each of whom is lost, probed and found again, nobody has to look at all of them each time.

"""Who is due next, where most moments are put off again and again."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Generic, Protocol, TypeVar


class Due(Protocol):
    """Something that is due at a moment; infinity is never."""

    noted: float
    """For :class:`TimerHeap`: the moment of its entry, at first infinity."""

    @property
    def due_at(self) -> float: ...


T = TypeVar("T", bound=Due)


class TimerHeap(Generic[T]):
    """Things by their moments; whoever makes one due earlier tells with :meth:`note`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._order = itertools.count()

    def note(self, thing: T) -> None:
        """``thing`` is new, or due earlier than it was."""
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
            if moment == thing.noted:  # else there is another entry for it, or none any more
                thing.noted = math.inf
                self.note(thing)
        return math.inf

    def due(self, now: float) -> list[T]:
        """What is due, the earliest first; it has to be noted anew."""
        found = []
        while self.next() <= now:
            thing = heapq.heappop(self._heap)[2]
            thing.noted = math.inf
            found.append(thing)
        return found
