"""A cache of providers that were found a short time ago.

A new rule about the time for which a provider stays known belongs here.
"""

from __future__ import annotations

from collections import OrderedDict

import trio

from spegel_consul.peers import Provider

FRESH = 5.0
"""Seconds that a provider is remembered (as in Spegel), which is long enough for the requests of one pull."""

_MOST = 8192


class RecentProviders:
    """Providers from lookups, by key, so that the next request for the key does not wait for a lookup."""

    def __init__(self) -> None:
        self._found: OrderedDict[str, dict[Provider, float]] = OrderedDict()

    def add(self, key: str, provider: Provider) -> None:
        """Add a provider that a lookup found."""
        now = trio.current_time()
        known = self._found.pop(key, {})
        known.pop(provider, None)  # replaced, because an equal one may name an older secondary address
        self._found[key] = {each: until for each, until in known.items() if until > now} | {provider: now + FRESH}
        # drop up to two old keys for each addition, oldest first, so that stale keys do not pile up
        for _ in range(2):
            oldest = next(iter(self._found))
            if len(self._found) <= _MOST and any(until > now for until in self._found[oldest].values()):
                break
            del self._found[oldest]

    def get(self, key: str) -> list[Provider]:
        """Return the providers of the key that are still fresh."""
        providers = self._found.get(key)
        if providers is None:
            return []
        now = trio.current_time()
        fresh = [provider for provider, until in providers.items() if until > now]
        if not fresh:
            del self._found[key]
        return fresh

    def drop(self, key: str, provider: Provider) -> None:
        """Remove a provider that did not have the content."""
        self._found.get(key, {}).pop(provider, None)
