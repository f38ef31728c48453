"""The history of some counters: their totals at the end of each of the last minutes.

A counter only grows, and a page says "in the last 24 hours" and draws a line of them. So the totals are written down
once a minute, in a ring of fixed size; the growth of a span is the difference of two totals. There is no clock in it:
``now`` are the seconds of any clock that does not go backwards. A minute in which nothing was noted has the totals of
the minute before, so a missed minute loses nothing.

A further form of the history belongs here; the counters that are noted are chosen by the caller.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import pairwise

DAY = 24 * 60
"""Minutes that are kept."""


class MinuteHistory:
    """The totals of ``series`` counters, 8 bytes for each counter and minute; 0 before the first note."""

    def __init__(self, series: int, minutes: int = DAY) -> None:
        self._minutes = minutes
        # one more than the minutes, for the total before the first of them
        self._totals = [array("d", bytes(8 * (minutes + 1))) for _ in range(series)]
        self._noted: int | None = None

    def note(self, now: float, totals: Sequence[float]) -> None:
        """Write down the totals of the present minute; the last note of a minute counts."""
        minute = int(now // 60)
        last = minute if self._noted is None else self._noted
        self._noted = max(last, minute)
        for kept, total in zip(self._totals, totals, strict=True):
            before = kept[self._slot(last)]
            for skipped in range(max(last + 1, self._noted - self._minutes), self._noted):
                kept[self._slot(skipped)] = before
            kept[self._slot(self._noted)] = total

    def growth(self, minutes: int) -> list[float]:
        """How much each counter has grown since so many minutes before the present one began."""
        return [sum(self.bars(number, minutes, 1)) for number in range(len(self._totals))]

    def bars(self, number: int, minutes: int, count: int) -> list[float]:
        """The growth of one counter in ``count`` equal parts of the last ``minutes``, the oldest part first.

        ``minutes`` is at most the number of minutes kept, and a multiple of ``count``.
        """
        if self._noted is None:
            return [0.0] * count
        kept, step = self._totals[number], minutes // count
        ends = [kept[self._slot(self._noted - minutes + step * part)] for part in range(count + 1)]
        return [late - early for early, late in pairwise(ends)]

    def _slot(self, minute: int) -> int:
        return minute % (self._minutes + 1)
