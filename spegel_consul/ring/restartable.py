"""``ReplaceableRouter``: a ``Router`` that can be replaced while it is in use.

A generation is one ``KadRouter`` with its task and its lookups.  The new generation takes the identity, the address,
the keys and the records of the old one; it listens on the same socket and joins the ring on connections of its own.
The switch happens when the new generation knows as many members as the old one and its keys are acknowledged, or after
CATCH_UP_TIMEOUT.  From then on the old generation accepts no connections; it ends after its open lookups.
If the new generation reaches no members although the old one has some, it is cancelled and the old one stays.

State that must survive a restart is passed on by ``make`` (see ``successor_of`` in ``router``), not here.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager

import structlog
import trio

from spegel_consul.peers import PeerInfo, Provider, RingError
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict
from spegel_consul.ring.member_view import MemberView
from spegel_consul.ring.router import KadRouter

log = structlog.get_logger(__name__)

CATCH_UP_TIMEOUT = 15.0
"""Seconds after which a new generation that has members takes over, even if it knows fewer than the old one."""

DRAIN = 5.0
"""Seconds after which the open lookups of the old generation are cancelled."""

_POLL = 0.05
_SAMPLE = 8


class _Generation:
    """One router and its task."""

    def __init__(self, router: KadRouter) -> None:
        self.router = router
        self.scope = trio.CancelScope()
        self.has_run = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.has_run = True
        with self.scope:
            await self.router.run(task_status=task_status)


class ReplaceableRouter:
    """A router whose generations come from ``make``, which is given the predecessor (None for the first)."""

    def __init__(self, make: Callable[[KadRouter | None], KadRouter]) -> None:
        self._make = make
        self._current = _Generation(make(None))
        self._next: _Generation | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def me(self) -> PeerInfo:
        return self._current.router.me

    def members(self) -> tuple[PeerInfo, ...]:
        return self._current.router.members()

    @property
    def at(self) -> float:
        """This node's position in the ring, scaled to [0, 1)."""
        return self._current.router.at

    @property
    def records(self) -> int:
        """The number of provider records that this node holds for others."""
        return self._current.router.records

    @property
    def warning(self) -> str | None:
        """A problem of the ring that an operator has to solve; None if there is none."""
        return self._current.router.warning

    def is_dead(self, peer_id: str) -> bool:
        """Whether it is a member and dead; a provider that is no member, as in a full table, may be alive."""
        return self._current.router.is_dead(peer_id)

    def view(self) -> tuple[MemberView, ...]:
        """All other members, including dead ones, for display."""
        return self._current.router.view()

    @property
    def unannounced(self) -> int:
        """The number of (key, peer) pairs that are not acknowledged yet."""
        return self._current.router.unannounced

    def lookup(self, key: str, *, count: int = 3) -> AbstractContextManager[AsyncIterator[Provider]]:
        return self._current.router.lookup(key, count=count)

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        told: set[_Generation] = set()
        # a generation that begins meanwhile has taken over only a part of the keys
        while untold := {each for each in (self._next, self._current) if each is not None} - told:
            for generation in untold:
                await generation.router.announce(added, removed)
            told |= untold

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        return await self._current.router.claim(group, report)

    def is_vacant(self, group: str) -> bool:
        return self._current.router.is_vacant(group)

    async def leave(self) -> None:
        if self._next is not None:
            await self._next.router.leave()
        await self._current.router.leave()

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        return await self._current.router.join(peers)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        failure: RingError | None = None
        if self._current.has_run:  # it failed, so a successor with its keys and records takes over
            self._current = _Generation(self._make(self._current.router))
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._current.run)
            except RingError as exc:  # raised below, because the nursery would wrap it in a group
                failure = exc
            else:
                self._nursery = nursery
                try:
                    task_status.started()
                    await trio.sleep_forever()
                finally:
                    self._nursery = None
        if failure is not None:
            raise failure

    async def restart(self, peers: Sequence[PeerInfo]) -> bool:
        """Replace the router by a new generation that joins through ``peers`` and known members.

        Returns False if the old generation stays.
        """
        nursery, old = self._nursery, self._current
        if nursery is None or self._next is not None:
            return False
        new = self._next = _Generation(self._make(old.router))
        try:
            try:
                await nursery.start(new.run)
            except RingError as exc:
                log.warning("ring_generation_failed", error=str(exc))
                return False
            with trio.move_on_after(CATCH_UP_TIMEOUT):
                await self._catch_up(new.router, old.router, peers)
            if old.router.members() and not new.router.members():
                return False
            if self._nursery is not nursery:  # a failure has ended both generations, and another one may run
                return False
            self._current = new
        finally:
            self._next = None
            if self._current is not new:
                new.scope.cancel()
        old.router.retire()
        with trio.move_on_after(DRAIN):
            while old.router.open_lookups:
                await trio.sleep(_POLL)
        old.scope.cancel()
        return True

    async def _catch_up(self, new: KadRouter, old: KadRouter, peers: Sequence[PeerInfo]) -> None:
        known = old.members()
        await new.join([*peers, *random.sample(known, min(_SAMPLE, len(known)))])
        while len(new.members()) < len(old.members()) or new.unannounced:
            await trio.sleep(_POLL)
