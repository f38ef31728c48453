"""``ObservedPeers``: the current answer of a bootstrap, which tasks can await to change.

It keeps the last peers that were named, the problem because of which they may be stale, and the event for waiters.
Only ids and addresses count: the order of an answer, or a repeated answer, wakes no waiter.  A problem is logged when
it begins and when it ends, not with every attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from spegel_consul.log import ProblemReport
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)


def ids_and_addresses(peers: Sequence[PeerInfo]) -> frozenset[tuple[str | None, frozenset[str]]]:
    """The part of ``peers`` whose change the ring reacts to."""
    return frozenset((peer.id, frozenset(peer.addrs)) for peer in peers)


class ObservedPeers:
    """The current answer of the bootstrap called ``name``."""

    def __init__(self, name: str) -> None:
        self.peers: tuple[PeerInfo, ...] = ()
        self._report = ProblemReport(log, "bootstrap hindered", "bootstrap unhindered", way=name)
        self._changed = trio.Event()

    @property
    def problem(self) -> str | None:
        """Why the peers may be stale, in one line; None when all is well."""
        return self._report.problem

    def set_peers(self, peers: Sequence[PeerInfo]) -> None:
        """Replace the peers."""
        changed = ids_and_addresses(peers) != ids_and_addresses(self.peers)
        if changed:
            self.peers = tuple(peers)
            self._changed.set()
            self._changed = trio.Event()

    def set_problem(self, problem: str | None) -> None:
        """Set the reason why there is no new answer; None if there is no problem."""
        self._report.tell(problem)

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when the peers differ from ``since`` in ids or addresses."""
        await trio.lowlevel.checkpoint()
        while ids_and_addresses(self.peers) == ids_and_addresses(since):
            await self._changed.wait()
