"""Rate limits by peer, for requests that are expensive to serve."""

from __future__ import annotations

from spegel_consul.bounded_dict import BoundedDict

_MOST = 1 << 16
"""Peers that are limited at once. A peer is forgotten as soon as it may ask again as if it had never asked."""


class RateLimit:
    """Admits one request per ``every`` seconds and peer, and up to ``burst`` at once; has no clock."""

    def __init__(self, *, every: float, burst: int) -> None:
        self._every = every
        self._ahead = every * (burst - 1)
        self._next: BoundedDict[bytes, float] = BoundedDict(_MOST)

    def admits(self, peer: bytes, now: float) -> bool:
        """Whether a request of ``peer`` at ``now`` is admitted; counts it if so."""
        at = max(self._next.get(peer, now), now)
        if at - now > self._ahead:
            return False
        self._next.drop_oldest(lambda later: later <= now)
        self._next[peer] = at + self._every
        return True
