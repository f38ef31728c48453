"""``ObservedPeers``: the current answer of a bootstrap, which tasks can await to change.

It keeps the last peers that were named, and the problem because of which they may be stale.
Only ids and addresses count: the order of an answer, or a repeated answer, wakes no waiter.  A problem is logged when
it begins and when it ends, not with every attempt.

A new rule about which change of an answer counts belongs here.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from spegel_consul.log import ProblemReport
from spegel_consul.observable import Observable
from spegel_consul.peers import PeerInfo

log = structlog.get_logger(__name__)


def ids_and_addresses(peers: Sequence[PeerInfo]) -> frozenset[tuple[str | None, frozenset[str]]]:
    """The part of ``peers`` whose change the ring reacts to."""
    return frozenset((peer.id, frozenset(peer.addrs)) for peer in peers)


class ObservedPeers:
    """The current answer of the bootstrap called ``name``."""

    def __init__(self, name: str) -> None:
        self._peers = Observable[Sequence[PeerInfo]]((), ids_and_addresses)
        self._report = ProblemReport(log, "bootstrap hindered", "bootstrap unhindered", way=name)

    @property
    def peers(self) -> Sequence[PeerInfo]:
        """The last peers that were named."""
        return self._peers.value

    @property
    def problem(self) -> str | None:
        """Why the peers may be stale, in one line; None when all is well."""
        return self._report.problem

    def set_peers(self, peers: Sequence[PeerInfo]) -> None:
        """Replace the peers."""
        self._peers.set(tuple(peers))

    def set_problem(self, problem: str | None) -> None:
        """Set the reason why there is no new answer; None if there is no problem."""
        self._report.tell(problem)

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when the peers differ from ``since`` in ids or addresses."""
        await self._peers.changed(since)
