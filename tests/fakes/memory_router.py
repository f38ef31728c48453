"""A ring within one process: routers that share an object."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager

import trio

from spegel_consul.peers import (
    PeerInfo,
    Provider,
    RingError,
    peer_id_from_text,
    peer_id_of_ed25519,
    peer_id_to_text,
)
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.ring.claiming import group_key, report_in_bytes
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict
from spegel_consul.ring.dht.claims import Claims


class MemoryRing:
    """The place where routers meet; they know each other only after a join, and only while they run."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.running: set[MemoryRouter] = set()
        self.claims = Claims()
        self.claims.place_of = self._place_of

    def number(self) -> int:
        return next(self._numbers)

    def _place_of(self, peer: bytes) -> Place:
        text = peer_id_to_text(peer)
        return next((router.here.place for router in self.running if router.me.id == text), NOWHERE)


class MemoryRouter:
    """A ``Router`` in a :class:`MemoryRing`; ``registry`` is where its node's registry is dialled."""

    def __init__(self, ring: MemoryRing, *, registry: tuple[str, int], here: Here | None = None) -> None:
        self.here = here or Here()
        self._ring = ring
        self._registry = registry
        number = ring.number()
        self._me = PeerInfo(
            peer_id_to_text(peer_id_of_ed25519(number.to_bytes(32, "big"))), (f"/ip4/127.0.0.1/tcp/{number}",)
        )
        self._known: set[MemoryRouter] = set()
        self._keys: set[str] = set()
        self._leaving = False

    @property
    def me(self) -> PeerInfo:
        return self._me

    @property
    def as_provider(self) -> Provider:
        """How others find this node."""
        return Provider(self.me.id or "", self._registry, place=self.here.place)

    def members(self) -> tuple[PeerInfo, ...]:
        return tuple(router.me for router in self._reachable())

    @contextmanager
    def lookup(self, key: str, *, count: int = 3) -> Iterator[AsyncIterator[Provider]]:
        if self not in self._ring.running:
            raise RingError("the ring is not running")
        found = [router for router in self._reachable() if key in router._keys]
        send, receive = trio.open_memory_channel[Provider](math.inf)
        with send:
            for router in random.sample(found, min(count, len(found))):
                send.send_nowait(router.as_provider)
        with receive:
            yield receive

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        await trio.lowlevel.checkpoint()
        if self._leaving:
            return
        self._keys.difference_update(removed)
        self._keys.update(added)

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        await trio.lowlevel.checkpoint()
        if self not in self._ring.running:
            raise RingError("the ring is not running")
        me = peer_id_from_text(self._me.id or "")
        decision = self._ring.claims.report(group_key(group), me, report_in_bytes(report), trio.current_time())
        texts = list(map(peer_id_to_text, decision.sources))
        running = {router.me.id: router for router in self._ring.running}
        sources = tuple(running[text].as_provider for text in texts if text in running)
        return Verdict(decision.what, sources, decision.again, decision.slow_upstream)

    def is_vacant(self, group: str) -> bool:
        return group_key(group) not in self._ring.claims

    async def leave(self) -> None:
        await trio.lowlevel.checkpoint()
        self._leaving = True
        self._keys.clear()

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        await trio.lowlevel.checkpoint()
        if self not in self._ring.running:
            return 0
        found = [
            router
            for router in self._ring.running - {self}
            if any(set(peer.addrs) & set(router.me.addrs) for peer in peers)
        ]
        everybody = {self}.union(self._known, found, *(router._known for router in found))
        for router in everybody:
            router._known |= everybody - {router}
        return len(found)

    async def restart(self, peers: Sequence[PeerInfo]) -> bool:
        """There is nothing to make anew; joins."""
        await self.join(peers)
        return True

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._ring.running.add(self)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._ring.running.discard(self)

    def _reachable(self) -> list[MemoryRouter]:
        return [router for router in self._known if router in self._ring.running]
