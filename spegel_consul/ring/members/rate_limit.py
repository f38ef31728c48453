"""Rate limits by peer, for requests that are expensive to serve."""

from __future__ import annotations

_PRUNE_AT = 4096


class RateLimit:
    """Admits one request per ``every`` seconds and peer, and up to ``burst`` at once; has no clock."""

    def __init__(self, *, every: float, burst: int) -> None:
        self._every = every
        self._ahead = every * (burst - 1)
        self._next: dict[bytes, float] = {}

    def admits(self, peer: bytes, now: float) -> bool:
        """Whether a request of ``peer`` at ``now`` is admitted; counts it if so."""
        at = max(self._next.get(peer, now), now)
        if at - now > self._ahead:
            return False
        if len(self._next) >= _PRUNE_AT:
            self._next = {each: later for each, later in self._next.items() if later > now}
        self._next[peer] = at + self._every
        return True
