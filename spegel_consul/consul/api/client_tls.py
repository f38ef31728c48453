# Something else renews certificates on the disk of a running process (Vault, consul-template, Nomad), so the files are
# looked at before a request, once a second at most, in a thread; a disk that hangs holds up a request for a second.
# The context stays the same object, which the pool of connections holds: connections that are made from now on show the
# new certificate, those that stand keep the old one.  New authorities count besides the old ones; one that was taken
# away counts until the next start.

"""``FollowedContext``: the client's side of TLS, which follows its files."""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.disk import foreign_files

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
        self._calls = foreign_files.FileCalls(_WITHIN)
        self._hangs = False

    async def look(self, now: float) -> None:
        """Take in what has changed; files that are wrong, or half replaced, leave the old ones in use."""
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        try:
            load = await self._calls.run(self._read)
        except OSError as why:
            if not self._hangs:
                log.warning("TLS files can't be looked at", error=why.strerror or str(why))
            self._hangs = True
        except ValueError as why:
            log.warning("new TLS files are not used", error=str(why))
        else:
            self._hangs = False
            if load is not None:
                load(self.context)  # not in the thread, because a context must not change while a handshake begins

    def _read(self) -> Callable[[ssl.SSLContext], None] | None:
        """What puts files that have changed into a context, None if none has. Called in a thread. Raises ValueError."""
        seen = self._stamps()
        if seen == self._seen:
            return None
        self._seen = seen
        return self._settings.tls_files()[1]

    def _stamps(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in self._paths():
            with suppress(OSError):
                found.append((str(path), *foreign_files.stamp(path)))
        return found

    def _paths(self) -> list[Path]:
        settings = self._settings
        below = sorted(Path(settings.capath).rglob("*")) if settings.capath and not settings.cafile else []
        single = (settings.client_cert, settings.client_key, settings.cafile)
        return [*(Path(path) for path in single if path), *below]
