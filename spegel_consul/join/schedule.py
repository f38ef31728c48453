# When to join, when to look for members that are missing, and when to leave a restless leader alone: the
# decisions of RingKeeper, without clock and without connections.

"""The decisions of ``RingKeeper``; all times are seconds of one monotonic clock."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Collection, Iterable

from spegel_consul.peers import PeerInfo

FIRST_RETRY, LONGEST_RETRY = 0.05, 10.0
"""Seconds between attempts to join while nobody answers (as Spegel's bootstrap)."""

EVERY = 1800.0
"""Seconds between joins when all is well (as Spegel's)."""

DEBOUNCE = 2.0
"""Seconds after which a change of the bootstrap peers is followed; what changes back meanwhile costs nothing."""

SPLAY_PER_MEMBER, LONGEST_SPLAY = 0.05, 30.0
"""Seconds over which the nodes of a ring spread what they all do for one reason."""

COVERAGE_EVERY, COVERAGE_AFTER_CHANGE = 60.0, 5.0
"""Seconds between comparisons with the catalog, and after a change of it."""

FLAPS, FLAP_WINDOW, HOLD = 3, 300.0, 300.0
"""More changes of the leader than this, in so many seconds, and it is not followed for so many seconds."""


class Schedule:
    """When to join next."""

    def __init__(self, *, every: float, debounce: float, rng: random.Random) -> None:
        self._every = every
        self._debounce = debounce
        self._rng = rng
        self._retry = FIRST_RETRY
        self._at = -math.inf

    def due(self, now: float, *, alone: bool) -> float:
        """When to join; ``alone`` means that others are named and none is a member."""
        if alone:
            self._at = min(self._at, now + self._retry * self._rng.uniform(0.5, 1.0))
        return self._at

    def changed(self, now: float, *, members: int, not_before: float = -math.inf) -> None:
        """Other peers are named than before: join through them soon, but not all ``members`` at the same moment."""
        splay = min(LONGEST_SPLAY, SPLAY_PER_MEMBER * members)
        at = max(now + self._debounce, not_before) + self._rng.uniform(0.0, splay)
        self._at = min(self._at, at)

    def joined(self, now: float, *, alone: bool) -> bool:
        """A join was tried. True if it has failed for so long that somebody should be told, once."""
        if not alone:
            self._retry = FIRST_RETRY
            self._at = now + self._every
            return False
        told = self._retry >= LONGEST_RETRY
        self._retry = min(LONGEST_RETRY, self._retry * 2)
        self._at = now + self._retry * self._rng.uniform(0.5, 1.0)
        return self._retry >= LONGEST_RETRY and not told


class Flapping:
    """Whether the leader changes so often that following it does more harm than good."""

    def __init__(self) -> None:
        self._changes: deque[float] = deque()
        self.hold_until = -math.inf
        """Until when changes are not followed."""

    def changed(self, now: float) -> bool:
        """The leader changed. True if it began to flap by this."""
        self._changes.append(now)
        while self._changes[0] < now - FLAP_WINDOW:
            self._changes.popleft()
        if len(self._changes) <= FLAPS or now < self.hold_until:
            return False
        self.hold_until = now + HOLD
        return True


class Coverage:
    """Whether all routers of the catalog are members, and what it means if they are not.

    A catalog that is empty, old or filtered names too few, never too many that answer: so what it names is a
    reason to join, and what it leaves out is no reason for anything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._at = math.inf
        self._rounds = 0
        self.split = False
        """Whether routers that answer were missing twice in a row: the ring had more parts than one."""

    def due(self, now: float, *, known: bool) -> bool:
        """Whether to compare now; ``known`` is whether the catalog names anybody."""
        if known and self._at == math.inf:
            self.changed(now)
        return now >= self._at

    def changed(self, now: float) -> None:
        """The catalog names others than before."""
        self._at = min(self._at, now + COVERAGE_AFTER_CHANGE)

    def compared(self, now: float, *, missing: int, reached: int) -> bool:
        """``reached`` of ``missing`` routers answered. True if this shows that the ring is, or was, split."""
        self._rounds = self._rounds + 1 if reached else 0
        was, self.split = self.split, self._rounds >= 2
        soon = missing > 0 and reached > 0
        self._at = now + (COVERAGE_AFTER_CHANGE if soon else COVERAGE_EVERY) * self._rng.uniform(0.8, 1.2)
        return self.split and not was


def missing(routers: Iterable[PeerInfo], members: Collection[PeerInfo], me: PeerInfo) -> list[PeerInfo]:
    """Those of ``routers`` that are neither ``me`` nor in ``members``, by id or, without one, by address."""
    ids = {member.id for member in members} | {me.id}
    addrs = {addr for member in members for addr in member.addrs} | set(me.addrs)
    return [
        router
        for router in routers
        if (router.id not in ids if router.id is not None else not addrs.intersection(router.addrs))
        and not set(router.addrs) & set(me.addrs)
    ]
