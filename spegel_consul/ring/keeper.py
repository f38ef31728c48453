# Keeps a router in the ring.  A bootstrap names peers, and this joins through them: at the start until
# somebody answers, when the names change, now and then in any case (two halves of a ring that were
# separated don't find each other again by themselves), and whenever the router has lost all members though
# others are named.
#
# It only ever adds.  What a bootstrap leaves out is no news about the ring: a catalog that answers late or
# not at all, or a leader that is being elected, must not make anybody forget anybody.
#
# Schedule decides when, without a clock; RingKeeper does it.

"""Joining the ring, again and again."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import structlog
import trio

from spegel_consul.bootstrap import Bootstrap
from spegel_consul.ring import PeerInfo, RingError, Router

log = structlog.get_logger(__name__)

FIRST_RETRY, LONGEST_RETRY = 0.05, 10.0
"""Seconds between attempts to join while nobody answers (as Spegel's bootstrap)."""

EVERY = 1800.0
"""Seconds between joins when all is well (as Spegel's)."""

_CHECK = 5.0  # seconds between looks at whether all members are gone


class Schedule:
    """When to join next; all times are seconds of one monotonic clock."""

    def __init__(self, *, every: float, debounce: float, splay: float, rng: random.Random) -> None:
        self._every = every
        self._debounce = debounce
        self._splay = splay
        self._rng = rng
        self._retry = FIRST_RETRY
        self._at = -math.inf

    def due(self, now: float, *, alone: bool) -> float:
        """When to join; ``alone`` means that others are named and none is a member."""
        if alone:
            self._at = min(self._at, now + self._retry * self._rng.uniform(0.5, 1.0))
        return self._at

    def changed(self, now: float) -> None:
        """Other peers are named than before: join through them soon, but not all nodes at the same moment."""
        self._at = min(self._at, now + self._debounce + self._rng.uniform(0.0, self._splay))

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


class RingKeeper:
    """Joins ``router`` through the peers of ``bootstrap``, see above; times in seconds."""

    def __init__(
        self,
        router: Router,
        bootstrap: Bootstrap,
        *,
        every: float = EVERY,
        debounce: float = 0.5,
        splay: float = 0.5,
        rng: random.Random | None = None,
    ) -> None:
        self._router = router
        self._bootstrap = bootstrap
        self._schedule = Schedule(every=every, debounce=debounce, splay=splay, rng=rng or random.Random())
        self._was_alone = True
        self.joins = 0
        """How often a join was tried."""
        self.rejoins = 0
        """How often a join succeeded when this node had been in the ring before."""
        self.last_error: str | None = None
        """Why this node is not in the ring, in one line for people; None when it is, or is the only one."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the router in the ring until cancelled; ``started()`` at once. Raises nothing."""
        task_status.started()
        in_ring_before = False
        before: frozenset[PeerInfo] | None = None
        while True:
            named = tuple(self._bootstrap.peers())
            others = self._others(named)
            now = trio.current_time()
            # compared here and not only waited for below: the wait may end for both reasons at once
            if before is not None and before != frozenset(named):
                self._schedule.changed(now)
            before = frozenset(named)
            due = self._schedule.due(now, alone=self._is_alone(others))
            if due <= now:
                reached = await self._join(others)
                if reached:
                    self.rejoins += in_ring_before
                    in_ring_before = True
                continue
            with trio.move_on_after(min(due - now, _CHECK)):
                await self._bootstrap.changed(named)

    async def _join(self, others: Sequence[PeerInfo]) -> int:
        reached = 0
        error = None
        if others:
            self.joins += 1
            try:
                reached = await self._router.join(others)
            except RingError as exc:
                error = str(exc)
        alone = self._is_alone(others)
        tell = self._schedule.joined(trio.current_time(), alone=alone)
        if alone:
            problem = error or self._bootstrap.problem
            self.last_error = f"none of {len(others)} peers can be reached" + (f": {problem}" if problem else "")
            if tell:
                log.warning("ring_unreachable", peers=len(others), error=self.last_error)
        else:
            self.last_error = None
            if others and self._was_alone:
                log.info("ring_joined", through=reached, members=len(self._router.members()))
        self._was_alone = alone or not others
        return reached

    def _is_alone(self, others: Sequence[PeerInfo]) -> bool:
        return bool(others) and not self._router.members()

    def _others(self, named: Sequence[PeerInfo]) -> tuple[PeerInfo, ...]:
        me = self._router.me
        return tuple(
            peer
            for peer in named
            if not (peer.id is not None and peer.id == me.id) and not set(peer.addrs) & set(me.addrs)
        )
