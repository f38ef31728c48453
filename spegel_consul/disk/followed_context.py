"""``FollowedContext``: the TLS context for Consul or Nomad, which follows its files.

Vault, consul-template and Nomad replace certificates on the disk while this process runs.  So the files are examined
before a request, at most once a second, in a thread; a disk that hangs delays a request by at most one second.

The pool of connections holds the context, so the context stays the same object.  New connections show the new
certificate, and open ones keep the old one.  New authorities are trusted in addition to the old ones; a removed
authority is trusted until the next start, because a context can't forget one.

A new rule about the time at which TLS files are read again belongs here.  Their contents belong to ``client_tls``.
"""

from __future__ import annotations

import math
import ssl

import structlog

from spegel_consul.disk.client_tls import ClientTls
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0
_WITHIN = 1.0  # seconds by which the disk may delay a request, such as a renewal


class FollowedContext:
    """``context`` as ``files`` have it. Raises ValueError for files that can't be used at the start."""

    def __init__(self, files: ClientTls) -> None:
        self._files = FollowedFile(lambda: stamps(files.paths()), files.read, within=_WITHIN)
        self.context: ssl.SSLContext = self._files.load()[0]
        self._next_look = -math.inf
        self._report = ProblemReport(log, "new TLS files are not used", field="error")

    async def look(self, now: float) -> None:
        """Load files that have changed. While they are wrong or half replaced, the old certificates stay in use."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        if (new := await self._files.look()) is not None:
            _, load = new
            load(self.context)  # not in the thread, because the context must not change during a handshake
        self._report.tell(self._files.problem)
