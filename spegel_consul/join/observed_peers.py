# What every bootstrap keeps between two questions: the last peers that somebody named, why they may be stale,
# and who waits for a change.  Only who and where count: the order of an answer, or one that is repeated, wakes
# nobody.  A problem is logged when it begins and when it ends, not with every attempt.

"""``ObservedPeers``: the peers that a bootstrap knows, and those who wait for others."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from spegel_consul.log import ProblemReport
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)


def who_and_where(peers: Sequence[PeerInfo]) -> frozenset[tuple[str | None, frozenset[str]]]:
    """What of ``peers`` a ring has to react to."""
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

    def give(self, peers: Sequence[PeerInfo]) -> None:
        """These are the peers now."""
        changed = who_and_where(peers) != who_and_where(self.peers)
        if changed:
            self.peers = tuple(peers)
            self._changed.set()
            self._changed = trio.Event()

    def trouble(self, problem: str | None) -> None:
        """Why there is no new answer; None: it works."""
        self._report.tell(problem)

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when the peers are others than ``since``."""
        await trio.lowlevel.checkpoint()
        while who_and_where(self.peers) == who_and_where(since):
            await self._changed.wait()
