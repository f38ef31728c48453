# Who has it?
#
# The ring knows keys (strings: digests and image names) and peers, nothing of HTTP or Consul.  A peer says
# of itself where its registry listens, as one more multiaddr in its provider record (/ip4/…/tcp/…/http), so a
# lookup yields what the mirror has to dial and nobody has to assume that all nodes use one port.

"""The ``Router`` protocol: which peers have a key, and how the ring is joined."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import trio

from spegel_consul.peers import PeerInfo, Provider


class Router(Protocol):
    """Finds who has a key. All keys are strings: a digest or a full image name."""

    @property
    def me(self) -> PeerInfo:
        """This node as others reach it."""
        ...

    def members(self) -> tuple[PeerInfo, ...]:
        """The other peers that are believed to be alive."""
        ...

    def lookup(self, key: str, *, count: int = 3) -> AbstractAsyncContextManager[AsyncIterator[Provider]]:
        """Providers of ``key`` as they are found, without this node itself, each peer once.

        The iterator ends when ``count`` were yielded or nobody is left to ask; it sets no deadline of its
        own beyond that of each question. Leaving the context abandons the questions that are still open.
        """
        ...

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        """This node now has ``added`` and no longer has ``removed``.

        Returns when the change is noted; it is carried to other peers in the background, again to those
        that did not acknowledge it, and again before the records expire.
        """
        ...

    async def leave(self) -> None:
        """This node is about to end: it has nothing any more, whatever is announced from now on.

        Returns when those of the others who could be told were told; sets no deadline.
        """
        ...

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        """Connect to these peers in addition to what is known already, and learn their members.

        Nothing that the router has is dropped. Returns to how many of them a connection stands.
        """
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the ring until cancelled; ``started()`` when it listens.

        Raises RingError if it can't listen.
        """
        ...
