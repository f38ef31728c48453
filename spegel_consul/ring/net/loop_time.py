"""Timeouts that count only the time in which this process could listen.

A timeout is a verdict on the peer, so it must not include time in which this process could not have read the answer.
On a machine with less CPU than its nodes demand, answers wait in the socket while the process waits for a core.  With
plain deadlines, live members would be declared dead and their records placed anew on other nodes; that costs
connections, which make the machine slower still, until the ring has declared itself dead.

So time is counted in ticks, and a tick counts only with its nominal length, however late it comes.  Between two ticks
the event loop ran and read everything that had arrived.  All timeouts share one ticking task, which runs only while
there are any.

A timeout belongs to a cancel scope, or to an object that waits without a task of its own.

Use it for every timeout whose expiry counts against a peer; use trio's own timeouts for the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

TICK = 0.05
"""Seconds; a timeout may last up to one tick longer than given."""

LONGEST = 8.0
"""A timeout lasts at most this many times its seconds, however late the loop is."""


class Timed(Protocol):
    """What a timeout ends."""

    def cancel(self) -> None: ...


class LoopTime:
    """The timeouts of one nursery; ``spawn`` starts a task in it."""

    def __init__(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._spawn = spawn
        self._remaining: dict[Timed, tuple[float, float]] = {}  # seconds of listening, and the latest moment
        self._ticking = False

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Raise TooSlowError after ``seconds`` of listening."""
        scope = trio.CancelScope(deadline=trio.current_time() + LONGEST * seconds)
        self.start(scope, seconds)
        try:
            with scope:
                yield scope
        finally:
            self.stop(scope)
        if scope.cancelled_caught:
            raise trio.TooSlowError

    def start(self, timed: Timed, seconds: float) -> None:
        """Call ``timed.cancel()`` after ``seconds`` of listening; it calls :meth:`stop` then, or before."""
        self._remaining[timed] = seconds, trio.current_time() + LONGEST * seconds
        if not self._ticking:
            self._spawn(self._tick)

    def stop(self, timed: Timed) -> None:
        """End the timeout of ``timed``."""
        del self._remaining[timed]

    async def _tick(self) -> None:
        if self._ticking:
            return
        self._ticking = True
        try:
            while self._remaining:
                await trio.sleep(TICK)
                now = trio.current_time()
                for timed, (left, latest) in list(self._remaining.items()):
                    if timed in self._remaining:  # it may have ended by what another one did
                        self._remaining[timed] = left - TICK, latest
                        if left <= 0 or now >= latest:
                            timed.cancel()
        finally:
            self._ticking = False
