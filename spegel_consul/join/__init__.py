# How do I find the ring?
#
# One small file per way.  A bootstrap only names peers to join through; it never tells the ring to forget
# anybody, because an empty or stale answer says more about the place that was asked than about the ring.
#
#   consul         the elected leader, the catalog while that can't help     candidate and catalog
#   catalog        some of the healthy routers in Consul's catalog           read rights only
#   nomad_var      the holder of a lock on a Nomad variable                  no Consul at all
#   nomad_service  some of the routers in Nomad's own catalog                )
#   http           a URL that serves peers, such as another node's /id       ) Source, asked now and then
#   dns            SRV or address records                                    ) by PolledBootstrap
#   file           a file that somebody else writes                          )
#   static         a list in the configuration
#
# Only consul and nomad_var elect somebody, so only these two have a leader.
#
# Several of them in a row are one again (several.py).

"""The ``Bootstrap`` protocol: where the ring is joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from spegel_consul.peers import PeerInfo


class Bootstrap(Protocol):
    """Names the peers through which this node joins the ring."""

    @property
    def problem(self) -> str | None:
        """Why the answer may be missing or stale, in one line for people; None when all is well."""
        ...

    @property
    def leader(self) -> PeerInfo | None:
        """The last known holder of the election's lock, perhaps this node.

        None until one is known, and always None where nothing is elected: the order of an answer says nothing about
        who leads.
        """
        ...

    def peers(self) -> Sequence[PeerInfo]:
        """Best known peers to join through; may be empty, may contain this node itself."""
        ...

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in who or where they are."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the answer fresh until cancelled; ``started()`` at once, without waiting for an answer.

        Never raises because the place that it asks is away.
        """
        ...


class KnownRouters(Protocol):
    """Names all routers that a catalog believes healthy, for comparison with the members of the ring."""

    def routers(self) -> Sequence[PeerInfo]:
        """May be empty, old or incomplete, may contain this node; an id is None where the catalog has none."""
        ...
