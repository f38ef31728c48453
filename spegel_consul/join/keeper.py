# Keeps a router in the ring.  A bootstrap names peers, and this joins through them: at the start until
# somebody answers, when the names change, now and then in any case, and whenever the router has lost all
# members though others are named.  When nobody is named, or none of them answers, the members of the last
# run are a way in.
#
# Two parts of a ring don't find each other by themselves.  So what the ring knows is compared with what the
# catalog knows: routers that are missing are joined, which makes one ring of two, for the members of both are
# exchanged.
#
# Only an election makes a leader.  Where nothing is elected the peers that are named may change as often as they like:
# each change is joined through, and none counts as a change of the leader.
#
# It only ever adds.  What a bootstrap or a catalog leaves out is no news about the ring: an answer that is
# late, empty, old or filtered, or a leader that is being elected, must not make anybody forget anybody.
#
# schedule.py decides when; this does it.

"""Joining the ring, again and again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import structlog
import trio

from spegel_consul.join import Bootstrap, KnownRouters
from spegel_consul.join.leader_change import OnLeaderChange
from spegel_consul.join.remembered_members import Remembered
from spegel_consul.join.schedule import DEBOUNCE, EVERY, Coverage, Flapping, Schedule, missing
from spegel_consul.peers import PeerInfo, RingError
from spegel_consul.ring import Router

log = structlog.get_logger(__name__)

RESTART_EVERY = 120.0
"""Seconds between two restarts of the router at least; in between it joins again instead."""

ALONE_RESTART = 300.0
"""Seconds without any member, though others are named, after which the router is made anew."""

_CHECK = 5.0  # seconds between looks at the members and the catalog
_SAMPLE = 3  # missing routers that are joined at once; each tells of all that it knows
_REMEMBERED_SAMPLE, _REMEMBERED_FOR = 5, 600.0
_SAVE_EVERY = 60.0


class RestartableRouter(Router, Protocol):
    """A router that can be made anew while it is in use."""

    async def restart(self, peers: Sequence[PeerInfo]) -> bool:
        """Replace the router by a new one that has joined through ``peers``. False if the old one stays."""
        ...


class RingKeeper:
    """Joins ``router`` through the peers of ``bootstrap``, see above; times in seconds."""

    def __init__(
        self,
        router: RestartableRouter,
        bootstrap: Bootstrap,
        *,
        known_routers: KnownRouters | None = None,
        remembered: Remembered | None = None,
        on_leader_change: OnLeaderChange = OnLeaderChange.REJOIN,
        every: float = EVERY,
        debounce: float = DEBOUNCE,
        restart_every: float = RESTART_EVERY,
        rng: random.Random | None = None,
    ) -> None:
        self._router = router
        self._bootstrap = bootstrap
        self._known_routers = known_routers
        self._remembered = remembered or Remembered(None)
        self._policy = on_leader_change
        self._restart_every = restart_every
        self._rng = rng or random.Random()
        self._schedule = Schedule(every=every, debounce=debounce, rng=self._rng)
        self._coverage = Coverage(self._rng)
        self._flapping = Flapping()
        self._was_alone = True
        self._leader: PeerInfo | None = None
        self._leader_changed = False
        self._restarted = self._saved = -float("inf")
        self._seen_last = 0.0
        self.rejoins = 0
        """How often a join succeeded when this node had been in the ring before."""
        self.restarts = 0
        """How often the router was made anew."""
        self.splits = 0
        """How often parts of the ring were found that did not know each other."""
        self.missing = 0
        """How many routers of the catalog are not members."""
        self.last_error: str | None = None
        """Why this node is not in the ring, in one line for people; None when it is, or is the only one."""

    @property
    def flapping(self) -> bool:
        """Whether the leader changes so often that it is not followed for now."""
        return trio.current_time() < self._flapping.hold_until

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the router in the ring until cancelled; ``started()`` at once. Raises nothing."""
        await self._remembered.load()
        task_status.started()
        self._started = self._seen_last = trio.current_time()
        in_ring_before = False
        before: tuple[PeerInfo, ...] | None = None
        routers_before: Sequence[PeerInfo] = ()
        try:
            while True:
                named = tuple(self._bootstrap.peers())
                now = trio.current_time()
                # compared here and not only waited for below: the wait may end for both reasons at once
                replaced = self._note_leader()
                if before is not None and (replaced or set(before) != set(named)):
                    self._follow(now, replaced=replaced)
                before = named
                routers = self._known_routers.routers() if self._known_routers is not None else ()
                if routers != routers_before:
                    self._coverage.changed(now)
                    routers_before = routers
                ways = self._ways(named, now)
                due = self._schedule.due(now, alone=self._is_alone(ways))
                if due <= now:
                    reached = await self._join(named, ways)
                    if reached:
                        self.rejoins += in_ring_before
                        in_ring_before = True
                    continue
                if self._coverage.due(now, known=bool(routers)):
                    await self._cover(routers)
                    continue
                await self._remember(now)
                with trio.move_on_after(min(due - now, _CHECK)):
                    await self._bootstrap.changed(named)
        finally:
            await self._remembered.save_last(self._router.members())

    def _note_leader(self) -> bool:
        """Whether another node leads than before; a leader that is not known for now is no other."""
        before, now = self._leader, self._bootstrap.leader
        self._leader = now or before
        return now is not None and before is not None and now != before

    def _follow(self, now: float, *, replaced: bool) -> None:
        """Others are named than before, perhaps because the leader was ``replaced``."""
        if self._leader is not None and self._policy is OnLeaderChange.IGNORE:
            return
        if replaced:
            self._leader_changed = True
            if self._flapping.changed(now):
                log.warning("leader_flapping", hold_seconds=round(self._flapping.hold_until - now))
        self._schedule.changed(now, members=len(self._router.members()), not_before=self._flapping.hold_until)

    def _ways(self, named: Sequence[PeerInfo], now: float) -> tuple[PeerInfo, ...]:
        """Through whom to join: who is named, and while that leads nowhere who was a member once."""
        others = self._others(named)
        if self._router.members():
            self._seen_last = now
        elif now - self._started < _REMEMBERED_FOR:
            remembered = missing(self._remembered.peers, others, self._router.me)
            sample = self._rng.sample(remembered, min(_REMEMBERED_SAMPLE, len(remembered)))
            # nobody vouches for their addresses, which may be another cluster's by now
            others += tuple(replace(peer, proven=True) for peer in sample)
        return others

    async def _join(self, named: Sequence[PeerInfo], ways: Sequence[PeerInfo]) -> int:
        reached = 0
        error = None
        others = self._others(named)
        if ways:
            try:
                if not await self._restart(ways, cut_off=self._is_alone(others)):
                    reached = await self._router.join(ways)
            except RingError as exc:
                error = str(exc)
        self._leader_changed = False
        alone = self._is_alone(ways)
        tell = self._schedule.joined(trio.current_time(), alone=alone)
        if self._is_alone(others):
            problem = error or self._bootstrap.problem
            self.last_error = f"none of {len(others)} peers can be reached" + (f": {problem}" if problem else "")
            if tell:
                log.warning("ring_unreachable", peers=len(others), error=self.last_error)
        else:
            self.last_error = None
            if ways and not alone and self._was_alone:
                log.info("ring_joined", through=reached, members=len(self._router.members()))
        self._was_alone = alone or not ways
        return reached

    async def _restart(self, ways: Sequence[PeerInfo], *, cut_off: bool) -> bool:
        """Make the router anew, if that is what is to be done now."""
        now = trio.current_time()
        asked_for = self._leader_changed and self._policy is OnLeaderChange.RESTART
        last_resort = cut_off and now - self._seen_last > ALONE_RESTART
        if not (asked_for or last_resort) or now - self._restarted < self._restart_every:
            return False
        self._restarted = now
        self._seen_last = now
        done = await self._router.restart(ways)
        self.restarts += done
        log.info("ring_restarted" if done else "ring_restart_failed", members=len(self._router.members()))
        return done

    async def _cover(self, routers: Sequence[PeerInfo]) -> None:
        """Join what the catalog knows and the ring does not."""
        absent = missing(routers, self._router.members(), self._router.me)
        reached = 0
        if absent:
            try:
                reached = await self._router.join(self._rng.sample(absent, min(_SAMPLE, len(absent))))
            except RingError as exc:
                log.debug("ring_cover_failed", error=str(exc))
        if self._coverage.compared(trio.current_time(), missing=len(absent), reached=reached):
            self.splits += 1
            log.warning("ring_split", missing=len(absent), members=len(self._router.members()))
        self.missing = len(missing(routers, self._router.members(), self._router.me))

    async def _remember(self, now: float) -> None:
        if now - self._saved >= _SAVE_EVERY:
            self._saved = now
            await self._remembered.save(self._router.members())

    def _is_alone(self, others: Sequence[PeerInfo]) -> bool:
        return bool(others) and not self._router.members()

    def _others(self, named: Sequence[PeerInfo]) -> tuple[PeerInfo, ...]:
        me = self._router.me
        return tuple(
            peer
            for peer in named
            if not (peer.id is not None and peer.id == me.id) and not set(peer.addrs) & set(me.addrs)
        )
