"""Pacing: a limit of bytes per second for all transfers of a kind together.

Each transfer takes a step of bytes from one token bucket before it moves them, and waits as long as the bucket says. A
step is what the limit allows in 20 ms, so transfers take their steps by turns and share the limit evenly. Bytes that
were taken and not moved, because a socket was full or empty, are given back.

A step leaves a socket at the speed of the link. So the kernel is told to pace the socket too (SO_MAX_PACING_RATE, which
TCP heeds without a queueing discipline), a quarter above the limit: bursts are short, and the bucket alone decides the
mean, whatever the number of sockets. A node without limits has no :class:`Pace`, and its transfers only test for that.

The bucket has no clock. A new rule about the rate of transfers belongs here.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio

BURST = 0.1
"""Seconds for which a limit that was not used is made up for."""

_STEP = 0.02  # seconds
_SHORTEST, _LONGEST = 8 << 10, 1 << 20  # bytes of a step
_SO_MAX_PACING_RATE = 47  # asm-generic/socket.h; Python has no name for it
_UNPACED = struct.pack("=Q", (1 << 64) - 1)


class TokenBucket:
    """Lets ``rate`` bytes per second pass. ``now`` is seconds of any clock that does not run backwards."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = 0.0  # the time at which the next byte may pass

    def take(self, count: int, now: float) -> float:
        """Take ``count`` bytes; return the seconds to wait before they may pass."""
        at = max(self._next, now - BURST)
        self._next = at + count / self._rate
        return max(0.0, at - now)

    def give_back(self, count: int) -> None:
        """Return bytes that were taken and did not pass."""
        self._next -= count / self._rate


class Pace:
    """The limit of ``rate`` bytes per second that several transfers share."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._step = min(max(int(rate * _STEP), _SHORTEST), _LONGEST)
        self._bucket = TokenBucket(rate)
        self._kernel = struct.pack("=Q", rate + rate // 4)

    async def take(self, most: int) -> int:
        """Wait until some bytes may pass; return their number, at least 1 and at most ``most``."""
        count = min(most, self._step)
        wait = self._bucket.take(count, trio.current_time())
        if wait:
            try:
                await trio.sleep(wait)
            except BaseException:
                self._bucket.give_back(count)
                raise
        return count

    def give_back(self, count: int) -> None:
        """Return bytes that were taken and did not pass."""
        if count:
            self._bucket.give_back(count)

    async def take_all(self, count: int) -> None:
        """Wait until ``count`` bytes may pass."""
        while count:
            count -= await self.take(count)

    def spend(self, count: int) -> None:
        """Count bytes that pass without a wait, because they are few; others wait for them."""
        self._bucket.take(count, trio.current_time())

    def begin(self, sock: trio.socket.SocketType) -> None:
        """Let the kernel spread the bytes of ``sock``."""
        _pace(sock, self._kernel)

    def end(self, sock: trio.socket.SocketType) -> None:
        """Let the kernel send at any speed again, because the next answer may be one without a limit."""
        _pace(sock, _UNPACED)


def _pace(sock: trio.socket.SocketType, rate: bytes) -> None:
    with suppress(OSError):  # only a help: the bucket holds the limit, and others report the errors of a closed socket
        sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, rate)
