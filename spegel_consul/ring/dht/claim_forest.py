"""The nodes at work on one group, as a forest: each node has one source or downloads from upstream itself.

The roots are the claimers.  A node gets a source only if the chain of that source - its source, the source of that one,
and so on - ends at a claimer and does not pass the node, so there is never a cycle.  An entry whose source is gone is
an orphan until its next report.

The choice of a source must stay cheap in a group of thousands.  So entries are kept in buckets by their number of
followers, and a choice looks at a few entries of each bucket: the newest, which are the ends of chains, and the oldest.
Each zone has buckets of its own, which are looked at first, so a source of the follower's zone is found among many.

A rule about the order of sources belongs here; a rule about a report as a whole belongs in ``claims``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.places import Place

CHAIN = 6
"""By default chains grow to this length before a source gets a second follower, and longer only as the logarithm of the
group.

A chain gives each follower the whole link of its source. But a follower holds small layers back until they are verified
(--verify-first), which costs their whole time at each hop.
"""

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

RATE_WINDOW = 3.0
"""Least seconds over which a rate is measured."""

STILL = 3.0
"""Seconds without growth after which a follower may have a source that hangs."""

OVERDUE = 2.0
"""Seconds after which a missing report of a node at work counts against it as a source."""

MOVE_EVERY = 5.0
"""Least seconds between two moves of one follower, except away from a lost source."""

ENTRY_EVERY = 60.0
"""Least seconds between two replacements of the node by which the content enters a zone."""

NARROW_FOR = 60.0
"""Seconds for which a source that could not serve two followers gets no second one."""

HUNG = 5.0
"""Seconds after which a claimer whose report is missing counts as slow, so that a follower takes over. A claimer that
only lacks time must not cost another copy, but the takeover must come before followers in mid-body give up their
sources.
"""

_LONGEST_CHAIN = 64
_BUCKETS, _LOOKS = 4, 8

Rank = tuple[bool, bool, int, bool, bool, bool, int, int]
"""Order of sources, the best is the least: silent, in another zone, badness of the link, slow claimer, less content
than the follower, too deep, number of followers, minus depth.
"""

_WORTH = 4  # numbers of a rank that tell whether a move is worth its interruption
_FAULTS = 6  # numbers of a rank of which none is set for a source without faults


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
    have_at_start: int = 0
    """``have`` at the moment ``since``."""
    near_only: bool = False
    """It follows no source of another zone."""
    presumed: bool = False
    """It has not reported to this keeper yet; a follower named it as its source."""
    tried: bool = False
    """It took over from a slow claimer before."""
    moved_at: float = -math.inf
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

    def measure(self, have: int, working: bool, now: float) -> None:
        """Note the bytes that the node has, for its rate."""
        if have > self.have:
            self.grew_at = now
        self.have, self.working, self._reported = have, working, now
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


_Buckets = tuple[dict[Entry, None], ...]


class Forest:
    """The entries of one group. ``chain``: the length of a chain from which a source may get a second follower."""

    def __init__(self, chain: int = CHAIN) -> None:
        self._chain = chain
        self.entries: dict[bytes, Entry] = {}
        self.claimers: dict[Entry, None] = {}
        self.failed: BoundedDict[bytes, float] = BoundedDict(256)  # lost sources, and until when they are none
        self._all: _Buckets = tuple({} for _ in range(_BUCKETS))
        self._by_area: dict[tuple[str, str], _Buckets] = {}
        self._entered: BoundedDict[tuple[str, str], float] = BoundedDict(256)  # by zone: the last replacement

    def add(self, peer: bytes, now: float, place: Place) -> Entry:
        """A new orphan."""
        entry = self.entries[peer] = Entry(peer, place, now)
        return entry

    def remove(self, entry: Entry) -> None:
        """Drop ``entry``; its followers are orphans."""
        self.release(entry)
        for child in list(entry.children):
            self.release(child)
        self._unlist(entry)
        del self.entries[entry.peer]

    def touch(self, entry: Entry, *, serves: bool, place: Place) -> None:
        """``entry`` reported, from ``place``; it may be a source if it ``serves``."""
        self.entries[entry.peer] = self.entries.pop(entry.peer)
        entry.presumed = False
        if (entry.serves, entry.place) != (serves, place):
            self._unlist(entry)
            entry.serves, entry.place = serves, place
            self._list(entry)

    def expire(self, now: float, most: int = 4) -> Iterator[Entry]:
        """Drop the ended ones of the next few entries, all of which have their turn; yields them."""
        for entry in list(islice(self.entries.values(), most)):
            if entry.until <= now:
                self.remove(entry)
                yield entry
            else:
                self.entries[entry.peer] = self.entries.pop(entry.peer)

    def release(self, entry: Entry) -> None:
        """Make ``entry`` an orphan."""
        self.claimers.pop(entry, None)
        entry.claimer = False
        source, entry.source = entry.source, None
        if source is not None:
            self._unlist(source)
            del source.children[entry]
            self._list(source)

    def claim(self, entry: Entry, now: float) -> None:
        """Make ``entry`` a claimer."""
        self.release(entry)
        self.claimers[entry] = None
        entry.claimer, entry.since, entry.have_at_start = True, now, entry.have
        entry.slow_until = -math.inf
        entry.lagging_until = -math.inf
        entry.restart()

    def follow(self, entry: Entry, source: Entry, now: float) -> None:
        """Make ``entry`` a follower of ``source``, whose chain must not pass it."""
        self.release(entry)
        self._unlist(source)
        source.children[entry] = None
        self._list(source)
        entry.source, entry.since, entry.moved_at, entry.have_at_start = source, now, now, entry.have
        entry.lagging_until = -math.inf

    def chain(self, entry: Entry, now: float, avoid: Entry | None = None) -> list[Entry] | None:
        """``entry`` and its sources up to a claimer; None if the chain passes ``avoid``, is broken or too long."""
        chain = [entry]
        while entry is not avoid and entry.until > now and len(chain) <= _LONGEST_CHAIN:
            if entry.claimer:
                return chain
            if entry.source is None:
                return None
            entry = entry.source
            chain.append(entry)
        return None

    def has_failed(self, peer: bytes, now: float) -> bool:
        return self.failed.get(peer, -math.inf) > now

    def rank(self, source: Entry, follower: Entry, now: float) -> Rank | None:
        """The rank of ``source`` for ``follower``; None if it can't be its source."""
        chain = self.chain(source, now, avoid=follower)
        if chain is None or not (source.serves or source.presumed) or self.has_failed(source.peer, now):
            return None
        if follower.shuns.get(source.peer, -math.inf) > now or not follower.reaches(source):
            return None
        depth = len(chain) - 1
        return (
            source.is_silent(now),
            follower.place.is_far(source.place),
            source.badness(now, follower),
            chain[-1].is_slow(now),
            source.have + HELD_BACK < follower.have,
            depth >= max(self._chain, len(self.entries).bit_length()),
            len(source.children) - (follower.source is source),
            -depth,
        )

    def choose(self, follower: Entry, now: float) -> tuple[Rank, Entry] | None:
        """The best source for ``follower`` other than its present one, and its rank; None if nobody can be it."""
        best: tuple[Rank, Entry] | None = None
        for some in self._candidates(follower):
            for source in some:
                if source is follower.source or source is follower:
                    continue
                rank = self.rank(source, follower, now)
                if rank is not None and (best is None or rank < best[0]):
                    best = rank, source
            if best is not None and not any(best[0][:_FAULTS]):
                break
        return best

    def move(self, follower: Entry, now: float) -> None:
        """Give ``follower`` a better source, if its present one is bad and there is one."""
        source = follower.source
        if source is None or now - follower.moved_at < MOVE_EVERY:
            return
        present = self.rank(source, follower, now)
        if follower.lags(now):
            siblings = [each for each in source.children if each is not follower and each.lags(now) and each.serves]
            ahead = [each for each in siblings if (each.have, each.peer) > (follower.have, follower.peer)]
            near = [each for each in ahead if not follower.place.is_far(each.place) or (present and present[1])]
            least = min(near, key=lambda each: (len(each.children), -each.have), default=None)
            if least is not None and len(least.children) < len(source.children):
                source.narrow_until = now + NARROW_FOR
                self.follow(follower, least, now)
                return
        if present is not None and any(present[:_WORTH]):
            chosen = self.choose(follower, now)
            if chosen is None:
                return
            better = chosen[0][:_WORTH] < present[:_WORTH]
            if better and present[1] and chosen[0][4]:
                better = False  # of two nodes that take the content from another zone, the one with less moves
            if better or self._may_cross(follower, chosen, now):
                self.follow(follower, chosen[1], now)

    def _may_cross(self, follower: Entry, chosen: tuple[Rank, Entry], now: float) -> bool:
        """Whether ``follower`` replaces the node by which the content enters its zone, because that one is slow.

        One more copy may cross then, because all nodes of the zone would wait for one bad line otherwise. Lines
        between zones that are only slower than the upstream are no reason.
        """
        (_, crosses, *faults), area = chosen[0], follower.place.area
        if not crosses or any(faults[: _FAULTS - 2]) or self._entered.get(area, -math.inf) > now - ENTRY_EVERY:
            return False
        entry = follower
        while entry.source is not None and not follower.place.is_far(entry.source.place):
            entry = entry.source
        if entry is follower or entry.source is None or not entry.is_slow_follower(now):
            return False
        self._entered[area] = now
        return True

    def _candidates(self, follower: Entry) -> Iterator[list[Entry]]:
        areas = [self._by_area.get(follower.place.area, ())] if follower.place else []
        for bucket in itertools.chain(*areas, self._all):
            if len(bucket) <= 2 * _LOOKS:
                yield list(bucket)
            else:
                yield [*islice(reversed(bucket), _LOOKS), *islice(bucket, _LOOKS)]
        yield list(islice(self.claimers, _LOOKS))

    def _list(self, entry: Entry) -> None:
        if entry.serves:
            index = min(len(entry.children), _BUCKETS - 1)
            self._all[index][entry] = None
            if entry.place:
                own = self._by_area.setdefault(entry.place.area, tuple({} for _ in range(_BUCKETS)))
                own[index][entry] = None

    def _unlist(self, entry: Entry) -> None:
        index = min(len(entry.children), _BUCKETS - 1)
        self._all[index].pop(entry, None)
        own = self._by_area.get(entry.place.area) if entry.place else None
        if own is not None:
            own[index].pop(entry, None)
            if not any(own):
                del self._by_area[entry.place.area]
