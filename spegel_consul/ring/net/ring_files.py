"""The ring's share of the open files.

Each socket of the ring is counted, from the dial or the accept to its close. Inbound connections get three quarters of
the share at most, so strangers that connect can't stop this node from dialling its members. All generations of a ring
have one count, because they run at the same time for a while.

With few files, the limits of single uses are parts of the share; with enough files, each has its own value.

The sidecar sets the size of the share. A rule about which sockets get it belongs here.
"""

from __future__ import annotations

import structlog
import trio

log = structlog.get_logger(__name__)

RING_FILES = 6144
"""Files that a ring of any size needs: 4,096 connections, 512 handshakes with strangers, and its dials."""

_WARN_EVERY = 60.0  # seconds


class RingFiles:
    """Counts the ring's sockets; ``files`` is the largest number of them."""

    def __init__(self, files: int = RING_FILES) -> None:
        self._files = max(files, 2)
        self._inbound = self._outbound = 0
        self._warn_at = 0.0

    def limit(self, most: int, part: int) -> int:
        """The limit of one use of sockets: ``most``, or one ``part``-th of the share if that is less."""
        return max(min(most, self._files // part), 1)

    def enter(self, *, inbound: bool) -> bool:
        """Count a socket unless the share is used up; return whether it was counted.

        Call :meth:`leave` after a counted socket was closed.
        """
        has_room = self._inbound + self._outbound < self._files
        if has_room and not (inbound and self._inbound >= self._files - max(self._files // 4, 1)):
            self._inbound += inbound
            self._outbound += not inbound
            return True
        if (now := trio.current_time()) >= self._warn_at:
            self._warn_at = now + _WARN_EVERY
            log.warning(
                "connection of the ring refused: it has too few open files",
                inbound=self._inbound,
                outbound=self._outbound,
                allowed=self._files,
            )
        return False

    def leave(self, *, inbound: bool) -> None:
        """Remove a socket from the count."""
        self._inbound -= inbound
        self._outbound -= not inbound
