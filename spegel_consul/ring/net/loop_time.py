# A timeout is a verdict on the other side, and must not be spoken for time in which this side could not have listened.
# When a machine has less CPU than its nodes ask for, answers lie in the socket while the process waits for its turn;
# a plain deadline passes meanwhile, a member that lives is taken for dead, its records are placed anew on others, that
# costs connections, and each makes the machine later still: a ring that declares itself dead.
#
# So time is counted in ticks, and a tick counts as no more than it was meant to take, however late it comes.  Between
# two ticks the loop turned, and what had arrived was read.  All questions share one ticking task, which runs only
# while there are any.

"""Timeouts that count only the time in which this process could listen."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio

TICK = 0.05
"""Seconds; a timeout is up to one longer than it says."""

LONGEST = 8.0
"""However late the loop is, a timeout takes no longer than this times its seconds."""


class LoopTime:
    """Timeouts of a process; ``spawn`` starts a task of the nursery that they are used in."""

    def __init__(self, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._spawn = spawn
        self._left: dict[trio.CancelScope, float] = {}
        self._ticking = False

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        """Raises TooSlowError after ``seconds`` of listening."""
        scope = trio.CancelScope(deadline=trio.current_time() + LONGEST * seconds)
        self._left[scope] = seconds
        if not self._ticking:
            self._spawn(self._tick)
        try:
            with scope:
                yield scope
        finally:
            del self._left[scope]
        if scope.cancelled_caught:
            raise trio.TooSlowError

    async def _tick(self) -> None:
        if self._ticking:
            return
        self._ticking = True
        try:
            while self._left:
                await trio.sleep(TICK)
                for scope, left in list(self._left.items()):
                    if left <= 0:
                        scope.cancel()
                    self._left[scope] = left - TICK
        finally:
            self._ticking = False
