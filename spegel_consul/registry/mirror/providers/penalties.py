# Only the address that was asked is a fact.  The peer id and the secondary address are the word of the node that wrote
# the provider record, or passed it on, and HTTP proves neither.  So a penalty counts for that address alone: under any
# peer id, because an id costs nothing; and for no secondary address, because that may be an honest node's.  A liar
# gains nothing from that: it could announce its second address under a second id as well.  The record that led to a
# barred address leads to no other one either, unless the address was not reached: the secondary address is for that.

"""Which peers are not asked for a while, because of what they did."""

from __future__ import annotations

import trio

from spegel_consul.peers import Provider

LIED = 300.0
"""Seconds without questions after bytes that were not what they were said to be."""

HUNG = 10.0
"""Seconds without questions after a deadline that the peer let pass, or an answer that made no sense."""

SLOW = 60.0
"""Seconds in which others are asked before a peer that was slow."""

_MOST = 4096
"""Addresses with a penalty of one kind that are remembered."""


class Penalties:
    """Remembers by the registry address that was asked, ``provider.registry``, whatever else the record names."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, int], float] = {}
        self._unreached_until: dict[tuple[str, int], float] = {}
        self._slow_until: dict[tuple[str, int], float] = {}
        self.stalls = 0
        """How often a peer let a deadline pass."""

    def lied(self, provider: Provider) -> None:
        """It sent wrong bytes."""
        _put(self._until, provider.registry, LIED)

    def failed(self, provider: Provider, *, hung: bool, broken: bool = False, reached: bool = True) -> None:
        """It did not answer as it should. To have nothing, or to leave, is not punished: that costs next to nothing.

        One that was not ``reached`` may yet be at its other address.
        """
        self.stalls += hung
        if hung or broken:
            _put(self._until if reached else self._unreached_until, provider.registry, HUNG)

    def slow(self, provider: Provider) -> None:
        """It gave less than others could; it is asked after them."""
        _put(self._slow_until, provider.registry, SLOW)

    def bars(self, provider: Provider) -> bool:
        """Whether it is not to be asked now."""
        return self.misbehaved(provider) or _holds(self._unreached_until, provider)

    def misbehaved(self, provider: Provider) -> bool:
        """Whether it is not to be asked now because of how it answered, so that its other address is no better."""
        return _holds(self._until, provider)

    def is_slow(self, provider: Provider) -> bool:
        """Whether others are to be asked before it."""
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
        if len(table) >= _MOST:  # the penalty that ends first is given up, so that no number of them ends a lie's
            del table[min(table, key=table.__getitem__)]
    table[registry] = max(now + seconds, table.get(registry, 0.0))
