"""Providers that were found a moment ago."""

from __future__ import annotations

from collections import OrderedDict

import trio

from spegel_consul.peers import Provider

FRESH = 5.0
"""Seconds that a provider is remembered (as in Spegel); long enough for the requests of one pull."""

_MOST = 8192


class RecentProviders:
    """What lookups found, by key, so that the next request for it can begin at once."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, dict[Provider, float]] = OrderedDict()

    def add(self, key: str, provider: Provider) -> None:
        """A lookup found it."""
        now = trio.current_time()
        known = self._found.pop(key, {})
        known.pop(provider, None)  # an equal one may name another secondary address; the latest record counts
        self._found[key] = {each: until for each, until in known.items() if until > now} | {provider: now + FRESH}
        # the oldest come first; two for each that is added, so what is stale does not stay
        for _ in range(2):
            oldest = next(iter(self._found))
            if len(self._found) <= _MOST and any(until > now for until in self._found[oldest].values()):
                break
            del self._found[oldest]

    def get(self, key: str) -> list[Provider]:
        """Those that are still fresh."""
        providers = self._found.get(key)
        if providers is None:
            return []
        now = trio.current_time()
        fresh = [provider for provider, until in providers.items() if until > now]
        if not fresh:
            del self._found[key]
        return fresh

    def drop(self, key: str, provider: Provider) -> None:
        """It did not have it after all."""
        self._found.get(key, {}).pop(provider, None)
