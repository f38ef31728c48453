"""Connection limits of the registry and the metrics port.

A connection may have several files, and these ports have a share of the process's files for the connections of other
machines, of which the sidecar sets the size. Half of the share is the limit of one address. So a client with thousands
of connections displaces only clients on other machines, and not all of those.

Rules about *how many* connections there may be belong here. Rules about *when* their work begins belong to
:mod:`spegel_consul.http.server.fair_turns`.
"""

from __future__ import annotations

from collections import Counter

import structlog
import trio

from spegel_consul.http.server.fair_turns import Turns

log = structlog.get_logger(__name__)

MOST_EACH = 2048
"""Connections of one address. The limit is not lower, because a whole site may share the address of a NAT."""

FILES_EACH = 4
"""Files of a connection: its socket, its blob, and a duplicate of each in a thread that waits for the disk."""

_WARN_EVERY = 60.0  # seconds


class ConnectionLimits:
    """Counts the connections of clients on other machines; ``files`` is the number of files that they may have."""

    def __init__(self, files: int) -> None:
        self._all = max(files // FILES_EACH, 1)
        self._each = min(max(self._all // 2, 1), MOST_EACH)
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._warn_at = 0.0
        self.turns = Turns()
        """Decides when accepted connections may begin work."""

    def enter(self, address: str) -> bool:
        """Count a connection of ``address`` unless a limit is reached; return whether it was counted.

        Call :meth:`leave` at the end of a counted connection.
        """
        if self._inside[address] < self._each and self._total < self._all:
            self._inside[address] += 1
            self._total += 1
            return True
        if (now := trio.current_time()) >= self._warn_at:
            self._warn_at = now + _WARN_EVERY
            log.warning("connection refused: too many stand", address=address, of_it=self._inside[address])
        return False

    def leave(self, address: str) -> None:
        """Remove a connection of ``address`` from the count."""
        self._total -= 1
        self._inside[address] -= 1
        if not self._inside[address]:
            del self._inside[address]
