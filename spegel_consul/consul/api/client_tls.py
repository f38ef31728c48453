# Something else renews certificates on the disk of a running process (Vault, consul-template, Nomad), so the files are
# looked at before a request, once a second at most, in a thread; a disk that hangs holds up a request for a second.
# The context stays the same object, which the pool of connections holds: connections that are made from now on show the
# new certificate, those that stand keep the old one.  New authorities count besides the old ones; one that was taken
# away counts until the next start.

"""``FollowedContext``: the client's side of TLS, which follows its files."""

from __future__ import annotations

import math
import ssl
from pathlib import Path

import structlog

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0
_WITHIN = 1.0  # seconds that a look may hold up a request, such as a renewal


class FollowedContext:
    """``context`` as ``settings`` have it. Raises ValueError for files that can't be used at the start."""

    def __init__(self, settings: ConsulSettings) -> None:
        self._settings = settings
        self._files = FollowedFile(lambda: stamps(self._paths()), settings.tls_files, within=_WITHIN)
        self.context: ssl.SSLContext = self._files.load()[0]
        self._next_look = -math.inf
        self._report = ProblemReport(log, "new TLS files are not used", field="error")

    async def look(self, now: float) -> None:
        """Take in what has changed; files that are wrong, or half replaced, leave the old ones in use."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        if (new := await self._files.look()) is not None:
            _, load = new
            load(self.context)  # not in the thread, because a context must not change while a handshake begins
        self._report.tell(self._files.problem)

    def _paths(self) -> list[Path]:
        settings = self._settings
        below = sorted(Path(settings.capath).rglob("*")) if settings.capath and not settings.cafile else []
        single = (settings.client_cert, settings.client_key, settings.cafile)
        return [*(Path(path) for path in single if path), *below]
