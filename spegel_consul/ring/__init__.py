"""The ``Router`` protocol: which peers have a key, and how the ring is joined.

The ring knows keys (strings: digests and image names) and peers, and nothing of HTTP or Consul.  Each peer announces
the address of its registry as one more multiaddr of its provider record (/ip4/…/tcp/…/http).  So a lookup yields the
address that the mirror dials, and nodes need not all use one port.

A method belongs in ``Router`` if the store, the mirror or the keeper needs it of every router; the conformance suite
runs against each implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import trio

from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict


class Router(Protocol):
    """Finds the peers that have a key. All keys are strings: a digest or a full image name."""

    @property
    def me(self) -> PeerInfo:
        """This node's peer id and the addresses that others dial."""
        ...

    def members(self) -> tuple[PeerInfo, ...]:
        """The other peers that are believed to be alive."""
        ...

    def lookup(self, key: str, *, count: int = 3) -> AbstractContextManager[AsyncIterator[Provider]]:
        """Yields providers of ``key`` as they are found, each peer once, never this node.

        At most ``count`` are yielded, more only if the answers of several peers disagree. The iterator ends when
        ``count`` providers are known here, when some were found and several peers have answered, when several peers
        that must know of one know of none, or when every candidate was asked. Each question has a deadline; the
        lookup as a whole has none. The questions are sent when the context is entered; leaving it abandons those that
        are still open. A cancelled wait loses nothing. Raises RingError if the router does not run.
        """
        ...

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        """Announce that this node has ``added`` and no longer has ``removed``.

        Returns when the change is noted. A background task sends it to the responsible peers, repeats it to those
        that do not acknowledge it, and repeats it to all of them before the records expire.
        """
        ...

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        """Report the state of ``group`` at this node to the keeper of the group; the answer says whom to follow.

        ``group`` is the digest of a manifest. The report is due again after ``Verdict.again`` seconds, and at once
        when a source failed; an entry without reports ends after 30 s. Takes at most 4 s (2 s for each of two
        keepers). Raises RingError if no keeper answers.
        """
        ...

    def is_vacant(self, group: str) -> bool:
        """Whether no node is at work on ``group``, as its keeper said in its answer to a lookup a moment ago.

        The key of that lookup is ``group``. False if there was none, or if the keeper did not answer it. A report that
        says nothing of this node would have the verdict "alone".
        """
        ...

    async def leave(self) -> None:
        """Withdraw all keys because this node is about to end; later announcements are ignored.

        Returns when the connected peers that hold its records were told; sets no deadline.
        """
        ...

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        """Connect to ``peers`` in addition to the known members, and learn their members.

        Drops nothing that the router has. Returns the number of ``peers`` that are connected.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the ring until cancelled; calls ``started()`` when it listens.

        Raises RingError if it can't listen.
        """
        ...
