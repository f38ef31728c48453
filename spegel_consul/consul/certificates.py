# Something else renews certificates on the disk of a running process (Vault, consul-template, Nomad), so the files are
# looked at before a request, once a second at most, in a thread; a disk that hangs holds up a request for a second.
# The context stays the same object, which the pool of connections holds: connections that are made from now on show the
# new certificate, those that stand keep the old one.  New authorities count besides the old ones; one that was taken
# away counts until the next start.

"""``FollowedContext``: the client's side of TLS, which follows its files."""

from __future__ import annotations

import math
import ssl
from contextlib import suppress
from pathlib import Path

import structlog

from spegel_consul import files
from spegel_consul.consul.settings import ConsulSettings

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0
_WITHIN = 1.0  # seconds that a look may hold up a request, such as a renewal


class FollowedContext:
    """``context`` as ``settings`` have it. Raises ValueError for files that can't be used at the start."""

    def __init__(self, settings: ConsulSettings) -> None:
        self.context: ssl.SSLContext = settings.ssl_context()
        self._settings = settings
        self._seen = self._stamps()
        self._next_look = -math.inf
        self._calls = files.FileCalls(_WITHIN)

    async def look(self, now: float) -> None:
        """Take in what has changed; files that are wrong, or half replaced, leave the old ones in use."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        try:
            await self._calls.run(self._follow)
        except OSError as why:
            log.warning("TLS files can't be looked at", error=why.strerror or str(why))

    def _follow(self) -> None:
        seen = self._stamps()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._settings.ssl_context()
            self._settings.load_tls_files(self.context)
        except ValueError as why:
            log.warning("new TLS files are not used", error=str(why))

    def _stamps(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in self._paths():
            with suppress(OSError):
                found.append((str(path), *files.stamp(path)))
        return found

    def _paths(self) -> list[Path]:
        settings = self._settings
        below = sorted(Path(settings.capath).rglob("*")) if settings.capath and not settings.cafile else []
        single = (settings.client_cert, settings.client_key, settings.cafile)
        return [*(Path(path) for path in single if path), *below]
