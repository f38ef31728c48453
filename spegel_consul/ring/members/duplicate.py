"""Another node with this node's identity, as after a clone of a machine that had its ``private.key`` already.

The members know a node by its id, so they take both for one: a record of one leads to the other, and neither of them
learns of the other.  Only the operator can mend that, so it is a warning.

The host notices it on any connection between both.  If others name this node at an address that is not its own, the
address is dialled to make such a connection: it may be an old address of this node, at which nobody answers any more.

A rule about when this node looks for its duplicate belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress

import structlog
import trio

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError
from spegel_consul.ring.dht.protocol_ids import KAD
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.net.host import Host
from spegel_consul.ring.net.node_key import KEY_FILE

log = structlog.get_logger(__name__)

SHOWN = 600.0
"""Seconds for which a duplicate that was seen is a problem."""

CHECK_EVERY = 60.0
"""Seconds between two looks at the addresses at which others name this node."""


class Duplicate:
    """Watches for a node with the identity of ``host``. ``own``: the addresses of this node's router."""

    def __init__(self, host: Host, background: Background, own: Callable[[], Collection[Address]]) -> None:
        self._host = host
        self._background = background
        self._own = own
        self._at = ""
        self._seen = self._checked = -math.inf
        host.on_duplicate = self._on_duplicate

    @property
    def problem(self) -> str | None:
        """The duplicate that was seen a short while ago, for people; None if there is none."""
        if trio.current_time() - self._seen > SHOWN:
            return None
        return (
            f"another node, at {self._at}, has this node's identity, so others mix them up: remove {KEY_FILE} in the "
            "data directory of one of them, and restart it (troubleshooting.md)"
        )

    def named_at(self, addresses: Iterable[Address | None]) -> None:
        """Somebody named this node at ``addresses``."""
        own, now = self._own(), trio.current_time()
        others = [each for each in addresses if each is not None and not each.http and each not in own]
        if others and now - self._checked >= CHECK_EVERY:
            self._checked = now
            self._background.spawn(self._look, others)

    async def _look(self, addresses: Sequence[Address]) -> None:
        with suppress(RingError):  # as always, because the host has no connection with itself
            await self._host.open(self._host.id, addresses, KAD)

    def _on_duplicate(self, at: str) -> None:
        is_new, self._at = self.problem is None, at
        self._seen = trio.current_time()
        if is_new:
            log.warning("ring_identity_duplicated", address=at, means=self.problem)
