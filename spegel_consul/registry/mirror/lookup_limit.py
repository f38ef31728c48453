"""The limit of lookups in flight for clients on other machines.

A request for unknown content costs a lookup in the ring, which other nodes answer too, and the lookup ends only with
the resolve timeout. The node's own runtime sends a bounded number of requests; a client on another machine may send
any number. So each address, and all other machines together, have a bounded number of lookups in flight. A request
beyond the limit is answered 404 at once, as if no peer had the content, so the client goes on upstream. The answer is
not 429, because containerd then repeats the request six times without a pause, whatever Retry-After says, and goes
upstream only after that.

A lookup is over with the first good answer of a peer, so transfers are not counted. A new rule about the number of
lookups belongs here; the number of connections is limited in :mod:`spegel_consul.http.server.connection_limits`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import trio

from spegel_consul.oci.path import ContentRequest, unknown

log = structlog.get_logger(__name__)

MOST_EACH = 64
"""Lookups in flight of one address. The limit is not lower, because a whole site may share the address of a NAT."""

MOST = 256
"""Lookups in flight of all other machines together."""

_WARN_EVERY = 60.0  # seconds


class LookupLimit:
    """Counts the lookups that clients on other machines have in flight."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self.in_flight = 0
        """Lookups in flight of all other machines now."""
        self._warn_at = 0.0

    @contextmanager
    def one(self, client: str, request: ContentRequest) -> Iterator[None]:
        """Count a lookup for ``request`` of the client at this address; "" is this machine, which has no limit.

        Raises ManifestUnknown or BlobUnknown if the limit is reached.
        """
        if not client:
            yield
            return
        if self._of[client] >= MOST_EACH or self.in_flight >= MOST:
            self._warn(client)
            raise unknown(request, f"too many requests of {client} are being looked up: ask the registry itself")
        self._of[client] += 1
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._of[client] -= 1
            if not self._of[client]:
                del self._of[client]

    def _warn(self, client: str) -> None:
        if not self._of[client]:
            del self._of[client]
        if (now := trio.current_time()) >= self._warn_at:
            self._warn_at = now + _WARN_EVERY
            log.warning("requests are not looked up: too many are in flight", address=client, of_it=self._of[client])
