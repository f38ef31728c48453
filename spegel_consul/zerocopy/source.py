"""Sources of a transfer, and the watch of their throughput.

Only the time spent waiting for a source counts. While the client is the slow side, the bytes of the source are there
already, and nothing waits for them. While the transfer does wait, the bytes that come are all that the peer and the
network can give. So the throughput is the number of bytes taken divided by the seconds waited. It is computed when
enough time was waited, and costs two readings of the clock for each wait.

A new rule about the throughput or the failure of a source belongs here. The reaction of the mirror to it belongs to
:mod:`spegel_consul.registry.mirror.body.supply`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import trio

from spegel_consul.error_words import in_words
from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.position import Position

DRIP = 16 << 10
"""Bytes per second below which a source counts as silent."""

SLOW_AFTER = 2.0
"""Seconds of waiting after which a source can be called slow."""

_WORTH = 1.0  # seconds that the rest must take at this rate before another source is tried


class SourceSlow(Exception):
    """The source is slow; the message is its rate. No byte of it is lost."""


class SourceLeft(Exception):
    """The transfer leaves the source because of :meth:`Throughput.leave`. No byte of it is lost."""


class Source(Protocol):
    """A socket to take bytes from."""

    def fileno(self) -> int: ...


@dataclass(slots=True)
class _Window:
    """A measurement window of ``length`` seconds of waiting."""

    length: float
    waited: float = 0.0
    left: int = 0

    def rate(self, seconds: float, left: int) -> float | None:
        """Add ``seconds`` of waiting; return bytes per second and begin a new window if this one is full, else None."""
        self.waited += seconds
        if self.waited < self.length:
            return None
        found = (self.left - left) / self.waited
        self.waited, self.left = 0.0, left
        return found


class Throughput:
    """The throughput of the sources of one transfer.

    A source may be silent for ``stall`` seconds. SourceSlow is raised once in a transfer, for a source that gives fewer
    than ``least`` bytes per second; 0 is for never. ``pace`` is the limit that the bytes of sources are counted
    against. Its waits are no waits for a source.
    """

    def __init__(self, stall: float, least: int = 0, pace: Pace | None = None) -> None:
        self.seconds = 0.0
        """Seconds of waiting for all sources so far."""
        self.pace = pace
        self.stall = self._own_stall = stall
        self._least = least
        self._growing = False
        self._leaving = False
        self._waiting: trio.CancelScope | None = None
        self._silent = _Window(stall)
        self._slow = _Window(SLOW_AFTER)

    def begin(self, left: int, growing_stall: float = 0.0) -> None:
        """Begin to watch another source, which has ``left`` bytes to give.

        ``growing_stall``: the seconds of silence that a source may need whose content still grows; such a source is
        never called slow, because it can't be faster than its own source. 0 for a source that has the content.
        """
        self._leaving, self._growing = False, bool(growing_stall)
        self.stall = self._silent.length = growing_stall or self._own_stall
        for window in (self._silent, self._slow):
            window.waited, window.left = 0.0, left

    def leave(self) -> None:
        """Make the transfer leave its source at its present or next wait; SourceLeft is raised there."""
        self._leaving = True
        if self._waiting is not None:
            self._waiting.cancel()

    @contextmanager
    def waiting(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A wait for the source until ``deadline`` in Trio's clock. Raises SourceLeft."""
        if self._leaving:
            raise SourceLeft
        with trio.CancelScope(deadline=deadline) as scope:
            self._waiting = scope
            try:
                yield scope
            finally:
                self._waiting = None
        if self._leaving:
            raise SourceLeft

    async def take(self, position: Position, most: int, move: Callable[[int], int]) -> int:
        """Call ``move`` with as many of the ``most`` bytes as the limit allows; return how many bytes it moved.

        ``move`` takes bytes from the source. Returns 0 if there are none now, or no room for them. Raises PeerError if
        the source has failed or has ended, and BrokenPipeError of ``move``.
        """
        pace, moved = self.pace, 0
        if pace is not None:
            most = await pace.take(most)
        try:
            moved = move(most)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise PeerError(in_words(exc)) from None
        finally:
            if pace is not None:
                pace.give_back(most - moved)
        if not moved:
            raise PeerError("closed the connection")
        position.took(moved)
        return moved

    async def readable(self, fd: int, left: int, until: float = math.inf) -> bool:
        """Wait until ``fd`` is readable; return False if the time ``until`` in Trio's clock came first.

        ``left``: the bytes that the source has to give. Raises PeerError, SourceSlow or SourceLeft.
        """
        began = trio.current_time()
        with self.waiting(min(began + self.stall, until)) as waiting:
            await trio.lowlevel.wait_readable(fd)
        now = trio.current_time()
        if waiting.cancelled_caught and now < until:
            raise PeerError(f"sent nothing for {self.stall:g} s", hung=True)
        self.waited(now - began, left)
        return not waiting.cancelled_caught

    def waited(self, seconds: float, left: int) -> None:
        """Add a wait for the source, which has ``left`` bytes to give. Raises PeerError or SourceSlow."""
        self.seconds += seconds
        rate = self._silent.rate(seconds, left)
        if rate is not None and rate < DRIP:
            raise PeerError(f"sent {rate:.0f} bytes per second for {self.stall:g} s", hung=True)
        rate = self._slow.rate(seconds, left)
        if rate is not None and rate < self._least and left > rate * _WORTH and not self._growing:
            self._least = 0
            raise SourceSlow(f"{rate / (1 << 20):.2f} MiB/s")
