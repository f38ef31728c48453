"""How many requests of other machines are looked up at a time.

A request for content that nobody has costs a lookup in the ring, which other nodes answer too, and it ends only with
the resolve timeout. The node's own runtime asks for what it needs; a client on another machine may ask without end. So
one address, and all together, have a bounded number of lookups in flight. A request beyond is answered 404 at once, as
if nobody had it: the client goes on upstream. It is not answered 429, because containerd then asks six more times
without a pause, whatever Retry-After says, and goes upstream only after that.

A lookup is over with the first good answer of a peer: transfers are not counted.
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
"""Lookups of one address; a whole site may come through one NAT."""

MOST = 256
"""Lookups of all other machines."""

_TELL_EVERY = 60.0  # seconds


class LookupLimit:
    """Counts the lookups that clients on other machines have in flight."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self.in_flight = 0
        """Lookups of all other machines now."""
        self._tell_at = 0.0

    @contextmanager
    def one(self, client: str, request: ContentRequest) -> Iterator[None]:
        """A lookup for ``request`` of the client at this address; "" is this machine, which has no limit.

        Raises ManifestUnknown or BlobUnknown if there are too many already.
        """
        if not client:
            yield
            return
        if self._of[client] >= MOST_EACH or self.in_flight >= MOST:
            self._tell(client)
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

    def _tell(self, client: str) -> None:
        if not self._of[client]:
            del self._of[client]
        if (now := trio.current_time()) >= self._tell_at:
            self._tell_at = now + _TELL_EVERY
            log.warning("requests are not looked up: too many are in flight", address=client, of_it=self._of[client])
