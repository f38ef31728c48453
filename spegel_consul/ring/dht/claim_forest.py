"""The nodes at work on one group, as a forest: each node has one source or downloads from upstream itself.

The roots are the claimers.  A node gets a source only if the chain of that source - its source, the source of that one,
and so on - ends at a claimer and does not pass the node, so there is never a cycle.  An entry whose source is gone is
an orphan until its next report.

The choice of a source must stay cheap in a group of thousands.  So entries are kept in buckets by their number of
followers, and a choice looks at a few entries of each bucket: the newest, which are the ends of chains, and the oldest.
Each rack, zone and datacenter has buckets of its own, which are looked at in this order, so a source that is near to
the follower is found among many.

A rule about the order of sources belongs here; a rule about what one node reports belongs in ``claim_entry``, about a
report as a whole in ``claims``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.places import SAME_RACK, Place
from spegel_consul.ring.dht.claim_entry import HELD_BACK, Entry

CHAIN = 6
"""By default chains grow to this length before a source gets a second follower, and longer only as the logarithm of the
group.

A chain gives each follower the whole link of its source. But a follower holds small layers back until they are verified
(--verify-first), which costs their whole time at each hop.
"""

STILL = 3.0
"""Seconds without growth after which a follower may have a source that hangs."""

MOVE_EVERY = 5.0
"""Least seconds between two moves of one follower, except away from a lost source and to the end of a chain."""

STAYS_FOR = 60.0
"""Seconds for which a follower that left a bad source does not make room, because it could come back to that source."""

ENTRY_EVERY = 60.0
"""Least seconds between two replacements of the node by which the content enters a zone."""

NARROW_FOR = 60.0
"""Seconds for which a source that could not serve two followers gets no second one."""

_LONGEST_CHAIN = 64
_BUCKETS, _LOOKS = 4, 8

_Buckets = tuple[dict[Entry, None], ...]


class Rank(NamedTuple):
    """How good a source is for a follower; the best is the least, and the first difference counts.

    The zone stands before what slows a link down, because bytes between zones cost money. The rack stands behind it,
    because bytes between racks only share a wire, and before the depth, so chains branch within a rack.
    """

    silent: bool
    crosses: int
    """Whether it is in another zone or datacenter, as in :meth:`Place.crosses`."""
    badness: int
    slow: bool
    """Whether its chain ends at a slow claimer."""
    less: bool
    """Whether it has less content than the follower."""
    other_rack: bool
    """Whether it is not known to be in the follower's rack, which is known."""
    full: bool
    """Whether its chain is long, or it has two followers already."""
    followers: int
    place: int
    """The depth, or minus the depth where chains are to grow at their ends."""

    @property
    def worth(self) -> tuple[bool, int, int, bool, bool]:
        """What a move may improve so that it is worth its interruption."""
        return self.silent, self.crosses, self.badness, self.slow, self.other_rack

    @property
    def faults(self) -> tuple[bool, int, int, bool, bool, bool, bool]:
        """All but the numbers by which good sources differ."""
        return self[:7]

    @property
    def enters(self) -> bool:
        """Whether the content enters the follower's zone or rack from there."""
        return bool(self.crosses) or self.other_rack


class Forest:
    """The entries of one group. ``chain``: the length of a chain from which a source may get a second follower."""

    def __init__(self, chain: int = CHAIN) -> None:
        self._chain = chain
        self.entries: dict[bytes, Entry] = {}
        self.claimers: dict[Entry, None] = {}
        self.failed: BoundedDict[bytes, float] = BoundedDict(256)  # lost sources, and until when they are none
        self._all: _Buckets = tuple({} for _ in range(_BUCKETS))
        self._by_area: dict[tuple[str, ...], _Buckets] = {}
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
        crosses = follower.place.crosses(source.place)
        other_rack = bool(follower.place.rack) and follower.place.distance(source.place) != SAME_RACK
        depth, followers = len(chain) - 1, len(source.children) - (follower.source is source)
        deep = depth >= max(self._chain, len(self.entries).bit_length())
        # who brings the content into a rack or a zone stands near the root, so that there is room for chains behind it
        grows = not (deep or crosses or other_rack)
        return Rank(
            source.is_silent(now),
            crosses,
            source.badness(now, follower),
            chain[-1].is_slow(now),
            source.have + HELD_BACK < follower.have,
            other_rack,
            deep or followers >= 2,
            followers // 2 if other_rack and not crosses else followers,
            -depth if grows else depth,
        )

    def choose(self, follower: Entry, now: float) -> tuple[Rank, Entry] | None:
        """The best source for ``follower`` other than its present one, and its rank; None if nobody can be it."""
        best: tuple[Rank, Entry] | None = None
        for other_rack, some in self._candidates(follower):
            if best is not None and best[0].faults <= (False, 0, 0, False, False, other_rack, False):
                break  # these can't be better
            for source in some:
                if source is follower.source or source is follower:
                    continue
                rank = self.rank(source, follower, now)
                if rank is not None and (best is None or rank < best[0]):
                    best = rank, source
        return best

    def move(self, follower: Entry, now: float) -> None:
        """Give ``follower`` a better source, if its present one is bad and there is one."""
        source = follower.source
        if source is None or self._make_room(follower, source, now) or now - follower.moved_at < MOVE_EVERY:
            return
        present = self.rank(source, follower, now)
        if follower.lags(now):
            siblings = [each for each in source.children if each is not follower and each.lags(now) and each.serves]
            ahead = [each for each in siblings if (each.have, each.peer) > (follower.have, follower.peer)]
            near = [each for each in ahead if not follower.place.is_far(each.place) or (present and present.crosses)]
            least = min(near, key=lambda each: (len(each.children), -each.have), default=None)
            if least is not None and len(least.children) < len(source.children):
                source.narrow_until = now + NARROW_FOR
                self.follow(follower, least, now)
                return
        if present is not None and any(present.worth):
            chosen = self.choose(follower, now)
            if chosen is None:
                return
            better = chosen[0].worth < present.worth
            if better and present.enters and chosen[0].less:
                better = False  # of two nodes by which the content enters a zone or a rack, the one with less moves
            if better or self._may_cross(follower, chosen, now):
                if present.silent or present.badness == 2:  # the source itself, not that two followers share its link
                    follower.stays_until = now + STAYS_FOR
                self.follow(follower, chosen[1], now)

    def _make_room(self, follower: Entry, source: Entry, now: float) -> bool:
        """Put ``follower`` behind the last node of its source's rack, if it is of another rack and the group is small.

        A group that fits into one chain needs no source with two followers, which share its link: the chain passes
        through one rack after the other.
        """
        if len(self.entries) > self._chain + 1 or not follower.place.rack or now < follower.stays_until:
            return False
        last = source
        while last.place.rack and last.place.distance(follower.place) != SAME_RACK:
            same = (each for each in last.children if each.place.distance(last.place) == SAME_RACK and each.serves)
            behind = next((each for each in same if each is not follower), None)
            if behind is None:
                break
            last = behind
        rank = self.rank(last, follower, now) if last is not source else None
        if rank is None or rank.silent or rank.badness or rank.less:
            return False
        self.follow(follower, last, now)
        return True

    def _may_cross(self, follower: Entry, chosen: tuple[Rank, Entry], now: float) -> bool:
        """Whether ``follower`` replaces the node by which the content enters its zone, because that one is slow.

        One more copy may cross then, because all nodes of the zone would wait for one bad line otherwise. Lines
        between zones that are only slower than the upstream are no reason.
        """
        rank, area = chosen[0], follower.place.area
        if not rank.crosses or rank.badness or rank.slow or rank.less or rank.full:
            return False
        if self._entered.get(area, -math.inf) > now - ENTRY_EVERY:
            return False
        entry = follower
        while entry.source is not None and not follower.place.is_far(entry.source.place):
            entry = entry.source
        if entry is follower or entry.source is None or not entry.is_slow_follower(now):
            return False
        self._entered[area] = now
        return True

    def _candidates(self, follower: Entry) -> Iterator[tuple[bool, list[Entry]]]:
        """Some entries of each bucket, near ones first, and whether all of the rack have been looked at."""
        place, outside = follower.place, False
        for area in (*place.areas, None):
            outside = bool(place.rack) and area != (place.datacenter, place.zone, place.rack)
            for bucket in self._all if area is None else self._by_area.get(area, ()):
                if len(bucket) <= 2 * _LOOKS:
                    yield outside, list(bucket)
                else:
                    yield outside, [*islice(reversed(bucket), _LOOKS), *islice(bucket, _LOOKS)]
        yield outside, list(islice(self.claimers, _LOOKS))

    def _list(self, entry: Entry) -> None:
        if entry.serves:
            index = min(len(entry.children), _BUCKETS - 1)
            self._all[index][entry] = None
            for area in entry.place.areas:
                own = self._by_area.setdefault(area, tuple({} for _ in range(_BUCKETS)))
                own[index][entry] = None

    def _unlist(self, entry: Entry) -> None:
        index = min(len(entry.children), _BUCKETS - 1)
        self._all[index].pop(entry, None)
        for area in entry.place.areas:
            own = self._by_area.get(area)
            if own is not None:
                own[index].pop(entry, None)
                if not any(own):
                    del self._by_area[area]
