"""Which peers are not asked for a while, because of what they did."""

from __future__ import annotations

import trio

from spegel_consul.ring import Provider

LIED = 300.0
"""Seconds without questions after bytes that were not what they were said to be."""

HUNG = 10.0
"""Seconds without questions after a deadline that the peer let pass."""

_MOST = 4096


class Penalties:
    """Remembers by registry address, since that is what misbehaved."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}
        self.stalls = 0
        """How often a peer let a deadline pass."""

    def lied(self, provider: Provider) -> None:
        """It sent wrong bytes."""
        self._bar(provider.registry, LIED)
        if provider.twin is not None:
            self._bar(provider.twin, LIED)

    def failed(self, provider: Provider, *, hung: bool, reached: bool = True) -> None:
        """It did not answer as it should. Only hanging is punished: the rest costs next to nothing.

        One that was not ``reached`` may yet be at its other address.
        """
        if hung:
            self.stalls += 1
            self._bar(provider.registry, HUNG)
            if reached and provider.twin is not None:
                self._bar(provider.twin, HUNG)

    def bars(self, provider: Provider) -> bool:
        """Whether it is not to be asked now."""
        until = self._until.get(provider.registry)
        if until is None:
            return False
        if until <= trio.current_time():
            del self._until[provider.registry]
            return False
        return True

    def _bar(self, registry: tuple[str, int], seconds: float) -> None:
        now = trio.current_time()
        if len(self._until) >= _MOST:
            self._until = {address: until for address, until in self._until.items() if until > now}
        self._until[registry] = max(now + seconds, self._until.get(registry, 0.0))
