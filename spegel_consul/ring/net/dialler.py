"""Outbound TCP connections, scheduled so that dead hosts do not delay live ones.

A live host answers a SYN at once; a dead one costs the whole timeout.  With one limit for all dials, a few hundred
dead addresses - a rack without power, or the records of a peer that announces such addresses - would keep live hosts
waiting.  So there are three limits:

    proven      hosts that were heard from (a few dials each), and addresses from the operator or the catalog
    unproven    hosts that are only known from other peers
    late        addresses of both kinds that did not answer within FIRST_TIMEOUT; dialled again with DIAL_TIMEOUT

A dial of the first two holds its slot only for FIRST_TIMEOUT, so the wait for a slot is short.  An address that did not
answer within DIAL_TIMEOUT is not dialled again for a while, because many peer ids may claim the same address.

Handshakes have limits of their own because they cost CPU: with too many at a time, all of them would be late.  A host
that accepts and then sends nothing holds an unproven slot for HANDSHAKE seconds, and its back-off is longer.

A new reason to dial earlier, later or not at all belongs here; what happens on a connection belongs in
``libp2p_host``.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.ring.net.ring_files import RingFiles

DIAL_TIMEOUT = 3.0
"""Seconds without an answer after which a dial fails."""

FIRST_TIMEOUT = 0.3
"""Seconds within which a live host answers; longer than a round trip around the earth."""

DIAL_BACKOFF = 3.0
"""Seconds for which an address that did not answer is not dialled again, unless it is named."""

HANDSHAKE = 1.0
"""Seconds for which a handshake holds its slot; a longer handshake goes on without one."""

HANDSHAKE_BACKOFF = 10.0
"""Seconds for which an address whose handshake timed out is not dialled again, unless it is named."""

MAX_HANDSHAKES = 6
"""Parallel handshakes with proven or named hosts, and as many with unproven ones."""

MAX_DIALS, MAX_LATE_DIALS = 32, 256
"""Parallel dials: of proven and of unproven hosts each, and of late addresses. With few open files there are fewer."""

_PROVEN_PER_HOST = 4

_REMEMBERED = 4096


class NoAnswer(OSError):
    """No host has the address, or a packet filter drops the packets."""


class Dialler:
    """Makes connections, within the limits above.

    Each connection is counted in ``files``. The caller closes it and removes it from the count.
    """

    def __init__(self, files: RingFiles | None = None) -> None:
        self._files = files or RingFiles()
        self._proven = trio.CapacityLimiter(self._files.limit(MAX_DIALS, 32))
        self._unproven = trio.CapacityLimiter(self._files.limit(MAX_DIALS, 32))
        self._late = trio.CapacityLimiter(self._files.limit(MAX_LATE_DIALS, 16))
        self._handshakes = {known: trio.CapacityLimiter(MAX_HANDSHAKES) for known in (True, False)}
        self._heard: BoundedDict[str, None] = BoundedDict(_REMEMBERED)
        self._under_way: Counter[str] = Counter()  # dials by host, of proven hosts
        self._backoff_until: BoundedDict[tuple[str, int], float] = BoundedDict(_REMEMBERED)

    def heard_from(self, host: str) -> None:
        """``host`` is alive because a connection with it was made."""
        self._heard[host] = None

    def has_heard_from(self, host: str) -> bool:
        """Whether ``host`` is proven: connected before, and not silent since."""
        return host in self._heard

    async def handshake(self, run: Callable[[], Awaitable[object]], *, known: bool) -> None:
        """Await ``run()``, which waits for a handshake, in a free slot; cancel the wait after HANDSHAKE seconds."""
        async with self._handshakes[known]:
            with trio.move_on_after(HANDSHAKE):
                await run()

    def handshake_timed_out(self, host: str, port: int) -> None:
        """The address accepted, and its handshake did not end in time."""
        self._heard.pop(host, None)
        self._backoff_until[(host, port)] = trio.current_time() + HANDSHAKE_BACKOFF

    async def connect(self, host: str, port: int, *, named: bool) -> trio.SocketStream:
        """A connection. Raises NoAnswer, or the system's error for the address (OSError, UnicodeError).

        ``named`` marks addresses from a trusted source: the operator or the catalog.
        """
        if not named and trio.current_time() < self._backoff_until.get((host, port), 0.0):
            raise NoAnswer("it did not answer a moment ago")
        stream = await self._first_try(host, port, named)
        if stream is None:
            self._heard.pop(host, None)
            stream = await self._try(self._late, DIAL_TIMEOUT, host, port)
        if stream is None:
            self._backoff_until[(host, port)] = trio.current_time() + DIAL_BACKOFF
            raise NoAnswer("no answer")
        self.heard_from(host)
        self._backoff_until.pop((host, port), None)
        return stream

    async def _first_try(self, host: str, port: int, named: bool) -> trio.SocketStream | None:
        if named:
            return await self._try(self._proven, FIRST_TIMEOUT, host, port)
        if host not in self._heard or self._under_way[host] >= _PROVEN_PER_HOST:
            return await self._try(self._unproven, FIRST_TIMEOUT, host, port)
        self._under_way[host] += 1
        try:
            return await self._try(self._proven, FIRST_TIMEOUT, host, port)
        finally:
            self._under_way[host] -= 1
            if not self._under_way[host]:
                del self._under_way[host]

    async def _try(self, limit: trio.CapacityLimiter, within: float, host: str, port: int) -> trio.SocketStream | None:
        async with limit:
            if not self._files.enter(inbound=False):
                raise OSError(errno.EMFILE, "the ring has too few open files")
            stream = None
            try:
                with trio.move_on_after(within):
                    stream = await trio.open_tcp_stream(host, port)
            finally:
                if stream is None:
                    self._files.leave(inbound=False)
        return stream
