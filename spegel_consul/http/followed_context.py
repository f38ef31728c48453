"""``FollowedContext``: the TLS context for Consul or Nomad, which follows its files.

Vault, consul-template and Nomad replace certificates on the disk while this process runs.  So the files are examined
before a request, at most once a second, in a thread; a disk that hangs delays a request by at most one second.

A context forgets neither an authority nor a certificate: OpenSSL keeps one certificate for each type of key, and
prefers EC to RSA. So changed files make a new context. The pool of connections keeps the object that it was given, so
that object starts each new connection with the newest context. Open connections keep the certificate that they began
with.

A new rule about the time at which TLS files are read again belongs here.  Their contents belong to ``client_tls``.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Iterable
from typing import Any

import structlog

from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.http.client_tls import ClientTls
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0
_WITHIN = 1.0  # seconds by which the disk may delay a request, such as a renewal


class _Newest(ssl.SSLContext):
    """Starts each connection with ``context``. Its own settings are not used, and trust no authority."""

    context: ssl.SSLContext

    def wrap_bio(self, *given: Any, **named: Any) -> ssl.SSLObject:
        """Called by Trio's SSLStream for each connection."""
        return self.context.wrap_bio(*given, **named)

    def set_alpn_protocols(self, protocols: Iterable[str]) -> None:
        """Called by httpcore before each connection."""
        self.context.set_alpn_protocols(protocols)


class FollowedContext:
    """``context`` as ``files`` have it. Raises ValueError for files that can't be used at the start."""

    def __init__(self, files: ClientTls) -> None:
        self._files = FollowedFile(lambda: stamps(files.paths()), files.context, within=_WITHIN)
        self._newest = _Newest(ssl.PROTOCOL_TLS_CLIENT)
        self._newest.context = self._files.load()
        self._next_look = -math.inf
        self._report = ProblemReport(log, "new TLS files are not used", field="error")

    @property
    def context(self) -> ssl.SSLContext:
        """The same object at all times; each new connection uses the files that were read last."""
        return self._newest

    async def look(self, now: float) -> None:
        """Load files that have changed. While they are wrong or half replaced, the old certificates stay in use."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        if (new := await self._files.look()) is not None:
            self._newest.context = new
        self._report.tell(self._files.problem)
