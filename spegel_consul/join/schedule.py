"""The decisions of ``RingKeeper``: when to join, when to look for missing members, when not to follow the leader.

It has neither clock nor connections; all times are seconds of one monotonic clock.  A new reason to join earlier, later
or not at all belongs here.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Iterable, Sequence

from spegel_consul.peers import PeerInfo

FIRST_RETRY, LONGEST_RETRY = 0.05, 10.0
"""Seconds between attempts to join while no peer answers (as Spegel's bootstrap)."""

EVERY = 1800.0
"""Seconds between periodic joins (as Spegel's)."""

DEBOUNCE = 2.0
"""Seconds after which the keeper joins through changed bootstrap peers; changes in between cost nothing more."""

SPLAY_PER_MEMBER, LONGEST_SPLAY = 0.05, 30.0
"""Seconds of jitter, per member and at most, because all nodes see the same change at once."""

COVERAGE_EVERY, COVERAGE_AFTER_CHANGE = 60.0, 5.0
"""Seconds between comparisons with the catalog, and from a change of the catalog to the next comparison."""

FLAPS, FLAP_WINDOW, HOLD = 3, 300.0, 300.0
"""After more than FLAPS changes of the leader within FLAP_WINDOW seconds, ignore changes for HOLD seconds."""


class Schedule:
    """The time of the next join."""

    def __init__(self, *, every: float, debounce: float, rng: random.Random) -> None:
        self._every = every
        self._debounce = debounce
        self._rng = rng
        self._retry = FIRST_RETRY
        self._at = -math.inf

    def due(self, now: float, *, alone: bool) -> float:
        """The time of the next join. ``alone``: other peers are named, and there are no members."""
        if alone:
            self._at = min(self._at, now + self._retry * self._rng.uniform(0.5, 1.0))
        return self._at

    def changed(self, now: float, *, members: int, not_before: float = -math.inf) -> None:
        """The named peers changed: join soon, with jitter because all ``members`` do the same."""
        splay = min(LONGEST_SPLAY, SPLAY_PER_MEMBER * members)
        at = max(now + self._debounce, not_before) + self._rng.uniform(0.0, splay)
        self._at = min(self._at, at)

    def joined(self, now: float, *, alone: bool) -> bool:
        """A join was tried. True once, when the retry interval has reached its maximum, to log a warning."""
        if not alone:
            self._retry = FIRST_RETRY
            self._at = now + self._every
            return False
        warned = self._retry >= LONGEST_RETRY
        self._retry = min(LONGEST_RETRY, self._retry * 2)
        self._at = now + self._retry * self._rng.uniform(0.5, 1.0)
        return self._retry >= LONGEST_RETRY and not warned


class Flapping:
    """Detects a leader that changes so often that following it does more harm than good."""

    def __init__(self) -> None:
        self._changes: deque[float] = deque()
        self.hold_until = -math.inf
        """The time until which changes are ignored."""

    def changed(self, now: float) -> bool:
        """The leader changed. True if flapping begins with this change."""
        self._changes.append(now)
        while self._changes[0] < now - FLAP_WINDOW:
            self._changes.popleft()
        if len(self._changes) <= FLAPS or now < self.hold_until:
            return False
        self.hold_until = now + HOLD
        return True


class Coverage:
    """Schedules comparisons of the catalog with the members, and detects splits of the ring.

    A catalog that is empty, old or filtered names too few routers, and a superfluous entry does not answer. So an entry
    is a reason to join, and a missing entry is no reason for anything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at = math.inf
        self._rounds = 0
        self.split = False
        """Whether the last two comparisons both found missing routers that answer: the ring was split."""

    def due(self, now: float, *, known: bool) -> bool:
        """Whether to compare now; ``known``: the catalog names routers."""
        if known and self._at == math.inf:
            self.changed(now)
        return now >= self._at

    def changed(self, now: float) -> None:
        """The routers in the catalog changed."""
        self._at = min(self._at, now + COVERAGE_AFTER_CHANGE)

    def compared(self, now: float, *, missing: int, reached: int) -> bool:
        """``reached`` of ``missing`` routers answered. True if this comparison detects a split."""
        self._rounds = self._rounds + 1 if reached else 0
        was, self.split = self.split, self._rounds >= 2
        soon = missing > 0 and reached > 0
        self._at = now + (COVERAGE_AFTER_CHANGE if soon else COVERAGE_EVERY) * self._rng.uniform(0.8, 1.2)
        return self.split and not was


class Recall:
    """Schedules joins through named peers that are no members, such as those that start later than this node, or that a
    long outage has removed: soon at first, then less and less often, once a minute at last.

    One that answered is tried again only after ``every`` seconds, because it may be a member under another address.
    """

    def __init__(self, every: float, rng: random.Random) -> None:
        self._every = every
        self._rng = rng
        self._at: dict[PeerInfo, float] = {}
        self._after: dict[PeerInfo, float] = {}

    def due(self, absent: Sequence[PeerInfo], now: float, *, members: int) -> Sequence[PeerInfo]:
        """Those of ``absent`` to join now. A new one has to be absent for a while, because a join is under way.

        It is under way longer in a ring of many ``members``, whose joins are spread.
        """
        first = COVERAGE_AFTER_CHANGE + min(LONGEST_SPLAY, SPLAY_PER_MEMBER * members)
        self._after = {peer: self._after.get(peer, first) for peer in absent}
        self._at = {peer: self._at.get(peer, now + self._spread(first)) for peer in absent}
        return [peer for peer, at in self._at.items() if at <= now]

    def tried(self, peer: PeerInfo, now: float, *, reached: bool) -> None:
        """``peer`` was asked; ``reached``: whether it answered."""
        self._after[peer] = min(COVERAGE_EVERY, 2 * self._after[peer])
        self._at[peer] = now + self._spread(self._every if reached else self._after[peer])

    def _spread(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.8, 1.2)


def missing(routers: Iterable[PeerInfo], members: Collection[PeerInfo], me: PeerInfo) -> list[PeerInfo]:
    """The ``routers`` that are neither ``me`` nor in ``members``, compared by id or, without an id, by address."""
    ids = {member.id for member in members} | {me.id}
    addrs = {addr for member in members for addr in member.addrs} | set(me.addrs)
    return [
        router
        for router in routers
        if (router.id not in ids if router.id is not None else not addrs.intersection(router.addrs))
        and not set(router.addrs) & set(me.addrs)
    ]
