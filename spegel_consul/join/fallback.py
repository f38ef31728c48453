"""``SeveralBootstraps``: several bootstraps in order of preference.

The first one that names another node is used.  The others are fall-backs for two cases: it has no answer, or its
answer is useless because its peers can't be reached (a leader that died with its rack, the address of a bridge).  So
while this node has no members, one more bootstrap is used in addition every WIDEN_EVERY seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from spegel_consul.join import Bootstrap
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

WIDEN_EVERY = 3.0
"""Seconds without members after which one more bootstrap is used in addition."""


class SeveralBootstraps:
    """``bootstraps`` with their names, in order of preference.

    ``me`` is this node; an answer that names only ``me`` does not count. ``alone`` returns whether the ring has no
    other members.
    """

    def __init__(
        self,
        bootstraps: Sequence[tuple[str, Bootstrap]],
        me: PeerInfo,
        alone: Callable[[], bool],
    ) -> None:
        self._bootstraps = tuple(bootstraps)
        self._me = me
        self._alone = alone
        self._width = 1
        self._observed = ObservedPeers("several")
        self._using: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """The problems of the bootstraps up to the first one that is used; of all if none has an answer."""
        problems = []
        for name, bootstrap in self._bootstraps:
            if bootstrap.problem:
                problems.append(f"{name}: {bootstrap.problem}")
            if name in self._using:
                break
        return "; ".join(problems) or None

    @property
    def leader(self) -> PeerInfo | None:
        """The leader of the first bootstrap that has one, up to the last one in use.

        The leader of an unused fall-back does not count. A bootstrap before those in use may have named only this node;
        its leader counts.
        """
        for name, bootstrap in self._bootstraps:
            if bootstrap.leader is not None:
                return bootstrap.leader
            if self._using and name == self._using[-1]:
                break
        return None

    def peers(self) -> Sequence[PeerInfo]:
        """The peers of the bootstraps in use: of the first that names another node, and of fall-backs."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all bootstraps until cancelled; calls ``started()`` at once."""
        async with trio.open_nursery() as nursery:
            for _, bootstrap in self._bootstraps:
                await nursery.start(bootstrap.run)
                nursery.start_soon(self._follow, bootstrap)
            nursery.start_soon(self._widen)
            self._update()
            task_status.started()

    async def _follow(self, bootstrap: Bootstrap) -> None:
        while True:
            peers = tuple(bootstrap.peers())
            self._update()
            await bootstrap.changed(peers)

    async def _widen(self) -> None:
        while True:
            await trio.sleep(WIDEN_EVERY)
            width = min(self._width + 1, len(self._bootstraps)) if self._alone() and self._observed.peers else 1
            if width != self._width:
                self._width = width
                self._update()

    def _update(self) -> None:
        found: list[PeerInfo] = []
        using: list[str] = []
        for name, bootstrap in self._bootstraps:
            peers = bootstrap.peers()
            if any(self._is_another(peer) for peer in peers):
                found += peers
                using.append(name)
                if len(using) == self._width:
                    break
        if tuple(using) != self._using:
            log.info("bootstrap", using=using)
        self._using = tuple(using)
        self._observed.set_peers(found)

    def _is_another(self, peer: PeerInfo) -> bool:
        return not (peer.id is not None and peer.id == self._me.id) and not set(peer.addrs) & set(self._me.addrs)
