# Several ways in a row.  The first that names somebody else is used, the ones behind it are fall-backs: for when it
# has no answer, and for when its answer is of no use, because whoever it names can't be reached (a leader that died
# with its rack, a bridge's address).  So while this node has no members, one more of them is listened to every few
# seconds.

"""``SeveralBootstraps``: the first that yields peers, and the next ones while nobody can be reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import trio

from spegel_consul.join import Bootstrap
from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)

PATIENCE = 3.0
"""Seconds that the peers of one bootstrap may stay unreachable before the next one is listened to as well."""


class SeveralBootstraps:
    """``bootstraps`` with their names, in order of preference.

    ``me`` is this node: naming it alone is no answer. ``lonely`` says whether the ring has no members but it.
    """

    def __init__(
        self,
        bootstraps: Sequence[tuple[str, Bootstrap]],
        me: PeerInfo,
        lonely: Callable[[], bool],
    ) -> None:
        self._bootstraps = tuple(bootstraps)
        self._me = me
        self._lonely = lonely
        self._width = 1
        self._observed = ObservedPeers("several")
        self._using: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """The problems of all, when none has an answer; else those of the ones before the one that is used."""
        problems = []
        for name, bootstrap in self._bootstraps:
            if bootstrap.problem:
                problems.append(f"{name}: {bootstrap.problem}")
            if name in self._using:
                break
        return "; ".join(problems) or None

    @property
    def leader(self) -> PeerInfo | None:
        """The leader of the first that has one, of those in use and those before them.

        An election that is only a fall-back changes nothing while it is not used. One that named only this node was
        passed over for its peers, and still says who leads.
        """
        for name, bootstrap in self._bootstraps:
            if bootstrap.leader is not None:
                return bootstrap.leader
            if self._using and name == self._using[-1]:
                break
        return None

    def peers(self) -> Sequence[PeerInfo]:
        """What the first one that names another node names, and those behind it while nobody can be reached."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in who or where they are."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run all of them until cancelled; ``started()`` at once."""
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
            await trio.sleep(PATIENCE)
            width = min(self._width + 1, len(self._bootstraps)) if self._lonely() and self._observed.peers else 1
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
        self._observed.give(found)

    def _is_another(self, peer: PeerInfo) -> bool:
        return not (peer.id is not None and peer.id == self._me.id) and not set(peer.addrs) & set(self._me.addrs)
