# Nodes, peers and clients of such a test are tasks of one event loop.  On a machine with too much work this loop gets
# no CPU for half a second now and then; to a deadline of half a second that looks like a peer that says nothing.  So
# time must not pass faster than the loop turns.
#
# trio's own MockClock, which jumps to the next deadline when all tasks are blocked, is right where nothing outside of
# the loop works for it.  Here threads hash and the kernel delivers, and a jump would overtake both.

"""Virtual time for tests that use sockets and threads: it passes with the turns of the event loop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

STEP = 0.005
"""Seconds that a turn of the loop takes at most."""

NAP = 0.06
"""Seconds that the loop sleeps at most. ``wait_all_tasks_blocked`` never returns if its cushion is longer than this."""


class LoopClock(trio.abc.Clock):
    """Real time on a machine that is free. Where the process waits for a CPU, its waiting does not count."""

    def __init__(self) -> None:
        self._now = 0.0
        self._read = 0.0
        self._nap = 0.0

    def start_clock(self) -> None:
        self._read = time.perf_counter()

    def current_time(self) -> float:
        read = time.perf_counter()
        elapsed, self._read = read - self._read, read
        nap, self._nap = self._nap, 0.0
        # a nap that was slept to its end counts, and what came on top of it was no wish of ours
        self._now += nap if elapsed >= nap > STEP else min(elapsed, STEP)
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        self._nap = max(0.0, min(deadline - self.current_time(), NAP))
        return self._nap


def run(
    test: Callable[..., Awaitable[Any]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> Any:
    """``trio.run`` for a test: a clock that the test has chosen goes before."""
    return trio.run(test, clock=clock or LoopClock(), instruments=instruments)
