# A router that can be made anew without anybody noticing.  The new generation has the identity, the address, the
# keys and the records of the old one; it listens on the same socket and joins the ring on its own connections.
# Only when it knows as many members as the old one and has told them its keys does it take over; the old one
# accepts nothing any more, ends the lookups that it has begun, and goes.  A generation that gets nowhere is
# given up, and the old one stays.

"""``ReplaceableRouter``: a ``Router`` that can be replaced while it is in use."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

import structlog
import trio

from spegel_consul.peers import PeerInfo, Provider, RingError
from spegel_consul.ring.member_view import MemberView
from spegel_consul.ring.router import KadRouter

log = structlog.get_logger(__name__)

PATIENCE = 15.0
"""Seconds that a new generation has to learn what the old one knows."""

DRAIN = 5.0
"""Seconds that lookups of the old generation have to end."""

_POLL = 0.05
_SAMPLE = 8


class _Generation:
    """One router, its task and the lookups that it carries."""

    def __init__(self, router: KadRouter) -> None:
        self.router = router
        self.scope = trio.CancelScope()
        self.lookups = 0
        self.has_run = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.has_run = True
        with self.scope:
            await self.router.run(task_status=task_status)


class ReplaceableRouter:
    """Routers that ``make`` makes, each the heir of the one that it is given (None for the first)."""

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
        """This node's place on the circle, in [0, 1)."""
        return self._current.router.at

    @property
    def records(self) -> int:
        """How many provider records of others are held here."""
        return self._current.router.records

    def view(self) -> tuple[MemberView, ...]:
        """All other members, dead ones too, for people."""
        return self._current.router.view()

    @property
    def unannounced(self) -> int:
        """How many (key, peer) pairs were not acknowledged yet."""
        return self._current.router.unannounced

    @asynccontextmanager
    async def lookup(self, key: str, *, count: int = 3) -> AsyncIterator[AsyncIterator[Provider]]:
        generation = self._current
        generation.lookups += 1
        try:
            async with generation.router.lookup(key, count=count) as providers:
                yield providers
        finally:
            generation.lookups -= 1

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        # the next one first: a generation that becomes the current one meanwhile has heard it already
        if self._next is not None:
            await self._next.router.announce(added, removed)
        await self._current.router.announce(added, removed)

    async def leave(self) -> None:
        if self._next is not None:
            await self._next.router.leave()
        await self._current.router.leave()

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        return await self._current.router.join(peers)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        failure: RingError | None = None
        if self._current.has_run:  # it failed, so an heir of what it knew takes over
            self._current = _Generation(self._make(self._current.router))
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(self._current.run)
            except RingError as exc:  # kept, because the nursery would wrap it
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
        """Make the router anew, joining through ``peers`` and known members. False if the old one stays."""
        if self._nursery is None or self._next is not None:
            return False
        old = self._current
        new = self._next = _Generation(self._make(old.router))
        try:
            try:
                await self._nursery.start(new.run)
            except RingError as exc:
                log.warning("ring_generation_failed", error=str(exc))
                return False
            with trio.move_on_after(PATIENCE):
                await self._catch_up(new.router, old.router, peers)
            if old.router.members() and not new.router.members():
                return False
            self._current = new
        finally:
            self._next = None
            if self._current is old:
                new.scope.cancel()
        old.router.retire()
        with trio.move_on_after(DRAIN):
            while old.lookups:
                await trio.sleep(_POLL)
        old.scope.cancel()
        return True

    async def _catch_up(self, new: KadRouter, old: KadRouter, peers: Sequence[PeerInfo]) -> None:
        known = old.members()
        await new.join([*peers, *random.sample(known, min(_SAMPLE, len(known)))])
        while len(new.members()) < len(old.members()) or new.unannounced:
            await trio.sleep(_POLL)
