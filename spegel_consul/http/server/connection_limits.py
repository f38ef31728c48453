# Every connection is a file of this process, and there are only so many.  So one address may have a share of them, and
# all who are not on this machine together another: a client with thousands of connections takes them from its like, and
# the runtime that this node is for gets in whatever others do.

"""How many connections clients may have, and how many files the process."""

from __future__ import annotations

import resource
from collections import Counter

import structlog
import trio

from spegel_consul.http.server.fair_turns import Turns

log = structlog.get_logger(__name__)

MOST_FILES = 65_536
"""Files that this process wants to have at most; each transfer has seven."""

ENOUGH_FILES = 16_384
"""Fewer are too few for the connections that the ring and the registry allow."""

MOST_EACH = 2048
"""Connections of one address; a whole site may come through one NAT."""

_TELL_EVERY = 60.0  # seconds


def raise_limit() -> int:
    """Let this process have as many files as it may and wants to; how many that are."""
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
    """Counts the connections of those who are not on this machine; ``files`` is how many the process may have."""

    def __init__(self, files: int) -> None:
        self._all = files // 2
        self._each = min(files // 4, MOST_EACH)
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._tell_at = 0.0
        self.turns = Turns()
        """When those who are in may begin something."""

    def enter(self, address: str) -> bool:
        """Whether a client at ``address`` may have one more connection; then call :meth:`leave` when it is over."""
        if self._inside[address] < self._each and self._total < self._all:
            self._inside[address] += 1
            self._total += 1
            return True
        if (now := trio.current_time()) >= self._tell_at:
            self._tell_at = now + _TELL_EVERY
            log.warning("connection refused: too many stand", address=address, of_it=self._inside[address])
        return False

    def leave(self, address: str) -> None:
        """One of its connections is over."""
        self._total -= 1
        self._inside[address] -= 1
        if not self._inside[address]:
            del self._inside[address]
