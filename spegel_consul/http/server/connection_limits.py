"""Connection limits, and the limit of open files.

The number of open files of this process is limited, and a connection may have several of them. So one address may have
a share of the files, and all other machines together may have another. A client with thousands of connections displaces
only clients on other machines, and files are left for the connections of the node's own runtime and for the ring.

Rules about *how many* connections there may be belong here. Rules about *when* their work begins belong to
:mod:`spegel_consul.http.server.fair_turns`.
"""

from __future__ import annotations

import resource
from collections import Counter

import structlog
import trio

from spegel_consul.http.server.fair_turns import Turns

log = structlog.get_logger(__name__)

MOST_FILES = 65_536
"""Largest number of files to ask for; each transfer has seven."""

ENOUGH_FILES = 16_384
"""Number of files that the connections of the ring and the registry need; fewer give a warning."""

MOST_EACH = 2048
"""Connections of one address. The limit is not lower, because a whole site may share the address of a NAT."""

RESERVED = 128
"""Files that the connections of other machines don't get: those of the ring, the store and the node's own runtime."""

FILES_EACH = 4
"""Files of a connection: its socket, its blob, and a duplicate of each in a thread that waits for the disk."""

_WARN_EVERY = 60.0  # seconds


def raise_limit() -> int:
    """Raise this process's limit of open files, up to the hard limit or MOST_FILES; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= files:
        files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        log.debug("limit of open files raised", before=soft, now=files)
    if files < ENOUGH_FILES:
        log.warning(
            "few open files are allowed, and so few connections: set LimitNOFILE (systemd) or nofile (Docker, Nomad)",
            allowed=files,
            wanted=ENOUGH_FILES,
        )
    return files


class ConnectionLimits:
    """Counts the connections of clients on other machines; ``files`` is the process's limit of open files."""

    def __init__(self, files: int) -> None:
        self._all = max((files - RESERVED) // FILES_EACH, 1)
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
