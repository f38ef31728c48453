"""The ``Bootstrap`` protocol: where the ring is joined.

There is one small module per kind of bootstrap in ``sources``.  A bootstrap only names peers to join through.  It never
makes the ring forget a member, because an empty or stale answer is news about its source, not about the ring.

  consul         the elected leader; the catalog while no leader is known   candidate and catalog
  catalog        some of the healthy routers in Consul's catalog            read rights only
  nomad_var      the holder of a lock on a Nomad variable                   without Consul
  nomad_service  some of the routers in Nomad's own catalog                 )
  http           a URL that serves peers, such as another node's /id        ) each a Source, polled
  dns            SRV or address records                                     ) by PolledBootstrap
  file           a file that another program writes                         )
  static         a list in the configuration

Only consul and nomad_var elect a leader.  Several bootstraps in order of preference are one bootstrap again
(``fallback``).

A new kind of bootstrap is a module in ``sources``, a member of ``BootstrapKind`` and a case in ``assemble``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from spegel_consul.peers import PeerInfo


class Bootstrap(Protocol):
    """Names the peers through which this node joins the ring."""

    @property
    def problem(self) -> str | None:
        """One line for people that says why the answer may be missing or stale; None if there is no problem."""
        ...

    @property
    def leader(self) -> PeerInfo | None:
        """The last known holder of the election's lock, perhaps this node.

        None until one is known, and always None without an election, because the order of an answer does not name a
        leader.
        """
        ...

    def peers(self) -> Sequence[PeerInfo]:
        """The best known peers to join through; may be empty, and may contain this node itself."""
        ...

    async def changed(self, since: Sequence[PeerInfo]) -> None:
        """Return when :meth:`peers` differs from ``since`` in ids or addresses."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the answer fresh until cancelled; calls ``started()`` at once, without waiting for an answer.

        Does not raise if its source is unavailable.
        """
        ...


class KnownRouters(Protocol):
    """All routers that a catalog lists as healthy, for comparison with the members of the ring."""

    def routers(self) -> Sequence[PeerInfo]:
        """The routers; may be empty, old or incomplete, and may contain this node. Ids may be None."""
        ...
