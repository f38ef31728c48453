# A peer's socket, as far as a transfer is concerned: it has bytes, or it makes us wait.
#
# Only time spent waiting for it says how fast it is.  While the client is what is slow, bytes are there already and
# nobody waits for them; while somebody waits, what comes is all that the peer and the way to it can give.  So a rate is
# bytes taken by seconds waited, looked at when enough has been waited, and costs two looks at the clock per wait.

"""Where the bytes of a transfer come from, and whether it gives enough of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import trio

DRIP = 16 << 10
"""Bytes per second below which a source is as good as silent."""

SLOW_AFTER = 2.0
"""Seconds of waiting after which a source is known to be slow."""

_WORTH = 1.0  # seconds that the rest would take, for another source to be worth a question


class SourceFailed(Exception):
    """The source ended or was reset. ``hung``: it sent next to nothing for too long; ``broken``: it sent too much."""

    def __init__(self, message: str, *, hung: bool = False, broken: bool = False) -> None:
        super().__init__(message)
        self.hung = hung
        self.broken = broken


class SourceSlow(Exception):
    """The source gives less than it should; the message says how much. No byte of it is lost."""


class Source(Protocol):
    """A socket to take bytes from."""

    def fileno(self) -> int: ...


@dataclass(slots=True)
class _Stretch:
    """A time of waiting that ends after ``length`` seconds."""

    length: float
    waited: float = 0.0
    left: int = 0

    def rate(self, seconds: float, left: int) -> float | None:
        """Bytes per second, if by waiting so much longer the stretch has ended; then another one begins."""
        self.waited += seconds
        if self.waited < self.length:
            return None
        found = (self.left - left) / self.waited
        self.waited, self.left = 0.0, left
        return found


class Throughput:
    """How fast the sources of one transfer are.

    A source may be silent for ``stall`` seconds. One that gives less than ``least`` bytes per second is told of once in
    the transfer's life; 0 is for never.
    """

    def __init__(self, stall: float, least: int = 0) -> None:
        self.stall = stall
        self._least = least
        self._drip = _Stretch(stall)
        self._slow = _Stretch(SLOW_AFTER)

    def begin(self, left: int) -> None:
        """Another source has ``left`` bytes to give."""
        for stretch in (self._drip, self._slow):
            stretch.waited, stretch.left = 0.0, left

    async def readable(self, fd: int, left: int) -> None:
        """Wait until ``fd`` has something to read. Raises SourceFailed or SourceSlow."""
        began = trio.current_time()
        with trio.move_on_after(self.stall) as waiting:
            await trio.lowlevel.wait_readable(fd)
        if waiting.cancelled_caught:
            raise SourceFailed(f"sent nothing for {self.stall:g} s", hung=True)
        self.waited(trio.current_time() - began, left)

    def waited(self, seconds: float, left: int) -> None:
        """So long was waited for the source, which has ``left`` bytes to give. Raises SourceFailed or SourceSlow."""
        rate = self._drip.rate(seconds, left)
        if rate is not None and rate < DRIP:
            raise SourceFailed(f"sent {rate:.0f} bytes per second for {self.stall:g} s", hung=True)
        rate = self._slow.rate(seconds, left)
        if rate is not None and rate < self._least and left > rate * _WORTH:
            self._least = 0
            raise SourceSlow(f"{rate / (1 << 20):.2f} MiB/s")
