"""``StaticBootstrap``: a list of peers from the configuration.

The list never changes; one reachable peer is enough.  The forms of an address belong to ``peer_formats``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import trio

from spegel_consul.join.observed_peers import ObservedPeers
from spegel_consul.join.peer_formats import parse_peers
from spegel_consul.peers import PeerInfo


class StaticBootstrap:
    """Joins through ``addresses``: ``/ip4/10.0.0.7/tcp/5001[/p2p/<id>]`` (or ip6, dns…) or ``host:port``.

    Addresses with the same peer id are one peer. Raises ValueError.
    """

    leader = None
    problem = None

    def __init__(self, addresses: Iterable[str]) -> None:
        self._observed = ObservedPeers("static")
        self._observed.set_peers(parse_peers(addresses))

    def peers(self) -> Sequence[PeerInfo]:
        """The peers; those without an id first."""
        return self._observed.peers

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return if :meth:`peers` differs from ``since``, else wait for ever, because the list is fixed."""
        await self._observed.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sleep until cancelled, because the list is fixed; calls ``started()`` at once."""
        task_status.started()
        await trio.sleep_forever()
