"""``RingKeeper``: joins the ring, and rejoins it as long as the node runs.

A bootstrap names peers, and the keeper joins through them:

* at the start, repeatedly until a peer answers;
* when the named peers change;
* periodically;
* whenever the router has lost all members although other peers are named.

If no peer is named, or none of them answers, the keeper joins through members of its last run.

Two parts of a split ring do not find each other.  So the keeper compares the members with the routers in the catalog
and joins missing ones; that merges the parts, because both sides exchange their member lists.  Named peers that are no
members are joined too, because a catalog has only the routers of its own datacenter.

Only an election makes a leader.  Without one, the named peers may change at any rate: the keeper joins through each
change, and none counts as a change of leader.

The keeper only ever adds.  If a bootstrap or a catalog leaves out a peer, that is no news about the ring: an answer
that is late, empty, old or filtered, or an election in progress, must not remove a member.

A rule about the time of a join belongs in ``schedule``; the joining belongs here.
"""

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
from spegel_consul.join.schedule import DEBOUNCE, EVERY, Coverage, Flapping, Recall, Schedule, missing
from spegel_consul.peers import PeerInfo, RingError
from spegel_consul.ring import Router

log = structlog.get_logger(__name__)

RESTART_EVERY = 120.0
"""Least seconds between two restarts of the router; in between it rejoins instead."""

ALONE_RESTART = 300.0
"""Seconds without members, although other peers are named, after which the router is restarted."""

_CHECK = 5.0  # seconds between checks of the members and the catalog
_SAMPLE = 3  # missing routers to join at once; few, because each sends all the members that it knows
_REMEMBERED_SAMPLE, _REMEMBERED_FOR = 5, 600.0
_SAVE_EVERY = 60.0


class RestartableRouter(Router, Protocol):
    """A router that can be restarted while it is in use."""

    async def restart(self, peers: Sequence[PeerInfo]) -> bool:
        """Replace the router by a new one that has joined through ``peers``. False if the old one stays."""
        ...


class RingKeeper:
    """Joins ``router`` through the peers of ``bootstrap``; all times are seconds."""

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
        self._recall = Recall(every, self._rng)
        self._flapping = Flapping()
        self._was_alone = True
        self._leader: PeerInfo | None = None
        self._leader_changed = False
        self._restarted = self._saved = -float("inf")
        self._seen_last = 0.0
        self.rejoins = 0
        """Number of successful joins after the first one."""
        self.restarts = 0
        """Number of restarts of the router."""
        self.splits = 0
        """Number of detected splits of the ring."""
        self.missing = 0
        """Number of routers in the catalog that are not members."""
        self.last_error: str | None = None
        """One line for people that says why this node is not in the ring; None if it is, or if no other is named."""

    @property
    def flapping(self) -> bool:
        """Whether changes of the leader are ignored for now because there were too many."""
        return trio.current_time() < self._flapping.hold_until

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the router in the ring until cancelled; calls ``started()`` at once. Raises nothing."""
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
                # compared here, because the wait below may end for both reasons at once
                replaced = self._note_leader()
                if before is not None and (replaced or set(before) != set(named)):
                    self._follow(now, replaced=replaced)
                before = named
                routers = self._known_routers.routers() if self._known_routers is not None else ()
                if routers != routers_before:
                    self._coverage.changed(now)
                    routers_before = routers
                entry_peers = self._entry_peers(named, now)
                due = self._schedule.due(now, alone=self._is_alone(entry_peers))
                if due <= now:
                    reached = await self._join(named, entry_peers)
                    if reached:
                        self.rejoins += in_ring_before
                        in_ring_before = True
                    continue
                if self._coverage.due(now, known=bool(routers)):
                    await self._cover(routers)
                    continue
                async with trio.open_nursery() as nursery:
                    for peer in self._absent(named, now):
                        nursery.start_soon(self._recall_peer, peer)
                await self._remember(now)
                with trio.move_on_at(min(due, now + _CHECK)):
                    await self._bootstrap.changed(named)
        finally:
            await self._remembered.save_last(self._router.members())

    def _note_leader(self) -> bool:
        """Whether the leader is another node than before; an unknown leader does not count as another."""
        before, now = self._leader, self._bootstrap.leader
        self._leader = now or before
        return now is not None and before is not None and now != before

    def _follow(self, now: float, *, replaced: bool) -> None:
        """The named peers changed; ``replaced`` if the leader is another node."""
        if self._ignores_leader():
            return
        if replaced:
            self._leader_changed = True
            if self._flapping.changed(now):
                log.warning("leader_flapping", hold_seconds=round(self._flapping.hold_until - now))
        self._schedule.changed(now, members=len(self._router.members()), not_before=self._flapping.hold_until)

    def _entry_peers(self, named: Sequence[PeerInfo], now: float) -> tuple[PeerInfo, ...]:
        """The peers to join through: the named ones, and members of the last run while there are no members."""
        others = self._others(named)
        if self._router.members():
            self._seen_last = now
        elif now - self._started < _REMEMBERED_FOR:
            remembered = missing(self._remembered.peers, others, self._router.me)
            sample = self._rng.sample(remembered, min(_REMEMBERED_SAMPLE, len(remembered)))
            # proven, because the addresses may belong to another cluster by now
            others += tuple(replace(peer, proven=True) for peer in sample)
        return others

    async def _join(self, named: Sequence[PeerInfo], entry_peers: Sequence[PeerInfo]) -> int:
        reached = 0
        error = None
        others = self._others(named)
        if entry_peers:
            try:
                if not await self._restart(entry_peers, cut_off=self._is_alone(others)):
                    reached = await self._router.join(entry_peers)
            except RingError as exc:
                error = str(exc)
        self._leader_changed = False
        alone = self._is_alone(entry_peers)
        warn = self._schedule.joined(trio.current_time(), alone=alone)
        if self._is_alone(others):
            problem = error or self._bootstrap.problem
            self.last_error = f"none of {len(others)} peers can be reached" + (f": {problem}" if problem else "")
            if warn:
                log.warning("ring_unreachable", peers=len(others), error=self.last_error)
        else:
            self.last_error = None
            if entry_peers and not alone and self._was_alone:
                log.info("ring_joined", through=reached, members=len(self._router.members()))
        self._was_alone = alone or not entry_peers
        return reached

    async def _restart(self, entry_peers: Sequence[PeerInfo], *, cut_off: bool) -> bool:
        """Restart the router if the policy asks for it or nothing else helped. True if it was restarted."""
        now = trio.current_time()
        asked_for = self._leader_changed and self._policy is OnLeaderChange.RESTART
        last_resort = cut_off and now - self._seen_last > ALONE_RESTART
        if not (asked_for or last_resort) or now - self._restarted < self._restart_every:
            return False
        self._restarted = now
        self._seen_last = now
        done = await self._router.restart(entry_peers)
        self.restarts += done
        log.info("ring_restarted" if done else "ring_restart_failed", members=len(self._router.members()))
        return done

    async def _cover(self, routers: Sequence[PeerInfo]) -> None:
        """Join routers that are in the catalog and not in the ring."""
        absent = missing(routers, self._router.members(), self._router.me)
        reached = await self._reach(self._rng.sample(absent, min(_SAMPLE, len(absent)))) if absent else 0
        if self._coverage.compared(trio.current_time(), missing=len(absent), reached=reached):
            self.splits += 1
            log.warning("ring_split", missing=len(absent), members=len(self._router.members()))
        self.missing = len(missing(routers, self._router.members(), self._router.me))

    def _absent(self, named: Sequence[PeerInfo], now: float) -> Sequence[PeerInfo]:
        """The named peers that are no members, and are to be joined now; without members the schedule joins all."""
        members = self._router.members()
        if self._ignores_leader() or not members:
            return ()
        due = self._recall.due(missing(named, members, self._router.me), now, members=len(members))
        return self._rng.sample(due, min(_SAMPLE, len(due)))

    async def _recall_peer(self, peer: PeerInfo) -> None:
        reached = await self._reach([peer])
        self._recall.tried(peer, trio.current_time(), reached=bool(reached))

    def _ignores_leader(self) -> bool:
        return self._leader is not None and self._policy is OnLeaderChange.IGNORE

    async def _reach(self, absent: Sequence[PeerInfo]) -> int:
        try:
            return await self._router.join(absent)
        except RingError as exc:
            log.debug("ring_cover_failed", error=str(exc))
            return 0

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
