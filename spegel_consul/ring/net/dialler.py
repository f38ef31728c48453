# Whose turn it is to be dialled.  A host that lives answers a SYN at once, and one that is gone is waited for: if all
# dials took turns in one queue, a few hundred addresses behind which nobody is - a rack without power, or the records
# of somebody who names such addresses - would keep the living waiting.  So there are three queues:
#
#   proven      hosts that were heard from, a few dials to each, and those that the operator or the catalog names
#   strangers   hosts that were only heard of
#   late        whoever of both did not answer at once; dialled again, with patience
#
# A turn in the first two is short whatever happens, so nobody waits there for long.  An address that did not answer
# with all patience is left alone for a while: many peers may be said to be at it.
#
# Handshakes have turns of their own, since they cost CPU: few at a time, or all would be late.  Who accepts and then
# says nothing keeps a turn for a moment only, one among strangers, and is left alone for longer.

"""TCP connections to others, in an order in which those that are gone don't delay the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from spegel_consul.bounded_dict import BoundedDict

PATIENCE = 3.0
"""Seconds after which nobody is there."""

AT_ONCE = 0.3
"""Seconds within which a host is expected to answer; longer than around the earth."""

REST = 3.0
"""Seconds for which an address that did not answer is not dialled again, unless it is named."""

HANDSHAKE = 1.0
"""Seconds of a turn to shake hands; who takes longer goes on without one."""

REST_MUTE = 10.0
"""Seconds for which an address that accepted and did not shake hands is not dialled again, unless it is named."""

HANDSHAKES = 6
"""Turns to shake hands, for those who were heard from or named, and as many for strangers."""

TURNS, LATE_TURNS = 32, 256

_PROVEN_PER_HOST = 4

_REMEMBERED = 4096


class NoAnswer(OSError):
    """Nobody is there, or a packet filter drops what is sent."""


class Dialler:
    """Makes connections, as many at a time as there are turns."""

    def __init__(self) -> None:
        self._proven = trio.CapacityLimiter(TURNS)
        self._strangers = trio.CapacityLimiter(TURNS)
        self._late = trio.CapacityLimiter(LATE_TURNS)
        self._handshakes = {known: trio.CapacityLimiter(HANDSHAKES) for known in (True, False)}
        self._heard: BoundedDict[str, None] = BoundedDict(_REMEMBERED)
        self._under_way: Counter[str] = Counter()  # of those whose turn is among the proven
        self._silent_until: BoundedDict[tuple[str, int], float] = BoundedDict(_REMEMBERED)

    def heard_from(self, host: str) -> None:
        """``host`` lives: a peer connected from there."""
        self._heard[host] = None

    def has_heard_from(self, host: str) -> bool:
        """Whether ``host`` is known to live."""
        return host in self._heard

    async def shake(self, handshake: Callable[[], Awaitable[object]], *, known: bool) -> None:
        """Start ``handshake()``, which waits for its end, when it is its turn; the wait is given up with the turn."""
        async with self._handshakes[known]:
            with trio.move_on_after(HANDSHAKE):
                await handshake()

    def mute(self, host: str, port: int) -> None:
        """The address accepted and did not shake hands in time."""
        self._heard.pop(host, None)
        self._silent_until[(host, port)] = trio.current_time() + REST_MUTE

    async def connect(self, host: str, port: int, *, named: bool) -> trio.SocketStream:
        """A connection. Raises NoAnswer, or whatever else the system says of an address (OSError, UnicodeError).

        ``named`` is for addresses that somebody vouches for: the operator, the catalog.
        """
        if not named and trio.current_time() < self._silent_until.get((host, port), 0.0):
            raise NoAnswer("it did not answer just now")
        stream = await self._try_at_once(host, port, named)
        if stream is None:
            self._heard.pop(host, None)
            stream = await self._try(self._late, PATIENCE, host, port)
        if stream is None:
            self._silent_until[(host, port)] = trio.current_time() + REST
            raise NoAnswer("no answer")
        self.heard_from(host)
        self._silent_until.pop((host, port), None)
        return stream

    async def _try_at_once(self, host: str, port: int, named: bool) -> trio.SocketStream | None:
        if named:
            return await self._try(self._proven, AT_ONCE, host, port)
        if host not in self._heard or self._under_way[host] >= _PROVEN_PER_HOST:
            return await self._try(self._strangers, AT_ONCE, host, port)
        self._under_way[host] += 1
        try:
            return await self._try(self._proven, AT_ONCE, host, port)
        finally:
            self._under_way[host] -= 1
            if not self._under_way[host]:
                del self._under_way[host]

    async def _try(
        self, turns: trio.CapacityLimiter, patience: float, host: str, port: int
    ) -> trio.SocketStream | None:
        async with turns:
            with trio.move_on_after(patience):
                return await trio.open_tcp_stream(host, port)
        return None
