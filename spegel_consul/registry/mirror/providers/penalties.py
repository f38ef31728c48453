"""Penalties: peers that are not asked for a while because of their behaviour.

A penalty is for the registry address that was asked, because only that address is a fact. The peer ID and the secondary
address are claims of the node that wrote or passed on the provider record, and HTTP proves neither. So a penalty holds
for the address under any peer ID, because an ID costs nothing. It does not hold for the secondary address, because that
may belong to an honest node; a wrong peer gains nothing from this, since it could announce its second address under a
second ID as well. A record that names a barred address leads to its secondary address only if the first address was not
reached, because that is the purpose of a secondary address.

A new reason to ask a peer later or not at all, because of its own behaviour, belongs here. The addresses that may never
be asked are in :mod:`spegel_consul.registry.mirror.providers.address_policy`.
"""

from __future__ import annotations

import trio

from spegel_consul.peers import Provider

LIED = 300.0
"""Seconds without questions after bytes with a wrong digest."""

HUNG = 10.0
"""Seconds without questions after a missed deadline or an invalid answer."""

SLOW = 60.0
"""Seconds in which a slow peer is asked after all others."""

_MOST = 4096
"""Largest number of addresses with a penalty of one kind."""


class Penalties:
    """Penalties by the registry address that was asked, ``provider.registry``."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}
        self._unreached_until: dict[tuple[str, int], float] = {}
        self._slow_until: dict[tuple[str, int], float] = {}
        self.stalls = 0
        """Number of deadlines that peers have missed."""

    def lied(self, provider: Provider) -> None:
        """Bar a provider that sent wrong bytes."""
        _put(self._until, provider.registry, LIED)

    def failed(self, provider: Provider, *, hung: bool, broken: bool = False, reached: bool = True) -> None:
        """Bar a provider that missed a deadline or sent an invalid answer.

        A provider without the content, or one that closes the connection, gets no penalty, because that costs next to
        nothing. A provider that was not ``reached`` may still be asked at its secondary address.
        """
        self.stalls += hung
        if hung or broken:
            _put(self._until if reached else self._unreached_until, provider.registry, HUNG)

    def slow(self, provider: Provider) -> None:
        """Ask the provider after others, because it was slow."""
        _put(self._slow_until, provider.registry, SLOW)

    def bars(self, provider: Provider) -> bool:
        """Whether the provider is not to be asked now."""
        return self.misbehaved(provider) or _holds(self._unreached_until, provider)

    def misbehaved(self, provider: Provider) -> bool:
        """Whether the provider is barred because of an answer, so that its secondary address is barred too."""
        return _holds(self._until, provider)

    def is_slow(self, provider: Provider) -> bool:
        """Whether the provider is asked after others."""
        return _holds(self._slow_until, provider)


def _holds(table: dict[tuple[str, int], float], provider: Provider) -> bool:
    until = table.get(provider.registry)
    if until is None:
        return False
    if until <= trio.current_time():
        del table[provider.registry]
        return False
    return True


def _put(table: dict[tuple[str, int], float], registry: tuple[str, int], seconds: float) -> None:
    now = trio.current_time()
    if len(table) >= _MOST and registry not in table:
        for address in [address for address, until in table.items() if until <= now]:
            del table[address]
        if len(table) >= _MOST:  # drop the penalty that ends first, so that short ones can't displace long ones
            del table[min(table, key=table.__getitem__)]
    table[registry] = max(now + seconds, table.get(registry, 0.0))
