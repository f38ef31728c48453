"""One node at work on a group: what it has reported, whom it follows, and how good a source it is.

The rate of a node is measured over its reports of the last seconds.  A node that is at work and whose report is
missing is silent.

A rule about what reports say of one node belongs here; the order of nodes as sources belongs in ``claim_forest``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice

from spegel_consul.places import Place

KEEPS_UP = 4 << 20
"""Bytes by which a follower may be behind its source before its source counts as the cause."""

HELD_BACK = 96 << 20
"""Bytes that a node may seem behind another: it holds three bodies of the usual --verify-first back, and the reports of
the two are some seconds apart.
"""

SLOW_CLAIMER = float(2 << 20)
"""A claimer with a lower rate is slow, in bytes per second."""

GRACE = 4.0
"""Seconds for which a new claimer is not called slow."""

NEARLY_DONE = 10.0
"""Seconds of download before its end in which a claimer is not called slow: it ends before a takeover could help."""

RATE_WINDOW = 3.0
"""Least seconds over which a rate is measured."""

OVERDUE = 2.0
"""Seconds after which a missing report of a node at work counts against it as a source."""

HUNG = 5.0
"""Seconds after which a claimer whose report is missing counts as slow, so that a follower takes over. A claimer that
only lacks time must not cost another copy, but the takeover must come before followers in mid-body give up their
sources.
"""

_LOOKS = 8  # followers of a node that are looked at


@dataclass(slots=True, eq=False)
class Entry:
    """A node at work on the group; moments are seconds of the reports' clock."""

    peer: bytes
    place: Place
    since: float
    """The moment at which it became a claimer or got its source."""
    until: float = 0.0
    due: float = 0.0
    source: Entry | None = None
    claimer: bool = False
    children: dict[Entry, None] = field(default_factory=dict)
    serves: bool = False
    working: bool = False
    have: int = 0
    left: int = 0
    """Bytes that it does not have yet; 0 if it does not know."""
    have_at_start: int = 0
    """``have`` at the moment ``since``."""
    near_only: bool = False
    """It follows no source of another zone."""
    presumed: bool = False
    """It has not reported to this keeper yet; a follower named it as its source."""
    declines: bool = False
    """It takes over from no slow claimer, because it knows that the upstream is slow for all."""
    tried: bool = False
    """It took over from a slow claimer before."""
    moved_at: float = -math.inf
    stays_until: float = -math.inf
    """It left a bad source shortly before."""
    lagging_until: float = -math.inf
    narrow_until: float = -math.inf
    """It could not serve two followers at once until shortly before."""
    slow_until: float = -math.inf
    accused_until: float = -math.inf
    """One of its followers lost it, the others did not yet."""
    losses: list[float] = field(default_factory=list)
    shuns: dict[bytes, float] = field(default_factory=dict)
    """Sources that it lost although others follow them, and until when."""
    grew_at: float = -math.inf
    _reported: float = 0.0
    _mark: tuple[float, int] | None = None
    _older: tuple[float, int] | None = None

    def measure(self, have: int, left: int, working: bool, now: float) -> None:
        """Note the bytes that the node has, for its rate, and those that it does not have yet."""
        if have > self.have:
            self.grew_at = now
        self.have, self.left, self.working, self._reported = have, left, working, now
        if not working:
            self.restart()
        elif self._mark is None:
            self._older = self._mark = (now, have)
        elif now - self._mark[0] >= RATE_WINDOW:
            self._older, self._mark = self._mark, (now, have)

    def restart(self) -> None:
        """Measure the rate anew."""
        self._mark = self._older = None

    def rate(self) -> float | None:
        """Bytes per second before its last report; None if it is not at work or was measured too briefly."""
        if self._older is None or self._reported - self._older[0] < RATE_WINDOW:
            return None
        return max(0.0, (self.have - self._older[1]) / (self._reported - self._older[0]))

    def is_silent(self, now: float, after: float = OVERDUE) -> bool:
        return (self.working or self.presumed) and now > self.due + after

    def is_adrift(self, now: float) -> bool:
        """Whether it lost its place and has not come for another one, which any living node does soon."""
        return self.source is None and not self.claimer and self.is_silent(now)

    def is_slow(self, now: float) -> bool:
        """Whether it is a claimer that is slower than a usual line, or hangs."""
        if not self.claimer or now - self.since < GRACE:
            return False
        if self.is_silent(now, HUNG):
            return True
        if not self.working:
            return False
        rate = self.rate()
        if rate is not None and 0 < self.left <= NEARLY_DONE * rate:
            return False
        return now < self.slow_until or (rate is not None and rate < SLOW_CLAIMER)

    def lags(self, now: float) -> bool:
        return now < self.lagging_until

    def reaches(self, source: Entry) -> bool:
        """Whether it may follow ``source``, as far as their zones tell."""
        return not (self.near_only and self.place.is_far(source.place))

    def is_slow_follower(self, now: float) -> bool:
        """Whether it gets less than a usual line gives, although its source has more."""
        source, rate = self.source, self.rate()
        if source is None or rate is None or now - self.since < GRACE:
            return False
        return rate < SLOW_CLAIMER and source.have > self.have + KEEPS_UP

    def is_starved(self) -> bool:
        """Whether it falls behind its source by more than held bodies explain, at less than half the rate."""
        source = self.source
        if source is None or source.have - self.have < HELD_BACK:
            return False
        rate, best = self.rate(), source.rate()
        return rate is not None and rate < (SLOW_CLAIMER if best is None else best / 2)

    def badness(self, now: float, follower: Entry) -> int:
        """How much its link would slow ``follower``.

        0: not at all; 1: its only other follower lags, because of its link or of the follower's; 2: it lags itself;
        3: it can't serve two.
        """
        others = [child for child in islice(self.children, _LOOKS) if child is not follower]
        lagging = any(child.lags(now) for child in others)
        if others and (now < self.narrow_until or (lagging and len(others) > 1)):
            return 3
        return 2 if self.lags(now) or self.is_starved() else int(lagging)
