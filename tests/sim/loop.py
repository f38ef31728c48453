# Trio's scheduler, without what virtual time has no use for: nothing is read from the kernel, a clock that jumps when
# nothing can run costs no pass through the loop, and a sleep is an entry in a heap instead of a cancel scope that is
# made, entered and cancelled.  A thousand nodes sleep most of the time, so that is most of what they would do.

"""A clock for Trio on which hours pass at once."""

from __future__ import annotations

import gc
import heapq
import itertools
import math
import random
from collections.abc import Awaitable, Callable, Iterator, MutableSequence
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import trio
from trio._core import _run as scheduler

_NOTHING_FOR = 10.0

T = TypeVar("T")


class _Chance(random.Random):
    """Trio's own source of chance, which shuffles whatever can run; most of the time that is one task."""

    def shuffle(self, x: MutableSequence[Any]) -> None:
        if len(x) > 1:
            super().shuffle(x)


class Loop(trio.abc.Clock):
    """Seconds since the start."""

    def __init__(self) -> None:
        self.now = 0.0
        self.chance = _Chance()
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def at(self, moment: float, do: Callable[[], object]) -> None:
        """Call ``do`` at ``moment``, among those of one moment in the order in which it was asked for."""
        heapq.heappush(self._timers, (moment, next(self._order), do))

    def seed(self, seed: int) -> None:
        """What Trio leaves to chance follows from ``seed`` from now on."""
        self.chance.seed(seed)

    # -- what Trio asks

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Nothing can run before ``deadline`` or the next timer: that is now."""
        timers = self._timers
        moment = min(deadline, timers[0][0]) if timers else deadline
        if moment == math.inf:
            return math.inf
        self.now = max(self.now, moment)
        while timers and timers[0][0] <= self.now:
            heapq.heappop(timers)[2]()
        return 0.0

    # -- in place of Trio's own

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
        else:
            await self.sleep_until(self.now + seconds)

    async def sleep_until(self, deadline: float) -> None:
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()

        def wake() -> None:
            if task is not None:
                trio.lowlevel.reschedule(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            nonlocal task
            task = None
            return trio.lowlevel.Abort.SUCCEEDED

        if deadline < math.inf:
            self.at(deadline, wake)
        await trio.lowlevel.wait_task_rescheduled(abort)


class _NoKernel(scheduler.TheIOManager):
    """The kernel is asked only when nobody waits for a moment: Trio wakes itself through a socket at the end."""

    def get_events(self, timeout: float) -> list[tuple[int, int]]:
        if not timeout:
            return []
        if not (events := super().get_events(_NOTHING_FOR)):
            raise RuntimeError("everybody waits, and nothing will ever happen")
        return events


def run(main: Callable[[Loop], Awaitable[T]], *, seed: int) -> T:
    """As ``trio.run``, in virtual time; what Trio leaves to chance follows from ``seed``."""
    loop = Loop()
    loop.seed(seed)
    with (
        mock.patch.object(trio, "sleep", loop.sleep),
        mock.patch.object(trio, "sleep_until", loop.sleep_until),
        mock.patch.object(scheduler, "TheIOManager", _NoKernel),
        mock.patch.object(scheduler, "_r", loop.chance),
        mock.patch.object(scheduler, "Instruments", dict),  # none are given; they are looked into eight times in a pass
        mock.patch.object(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        _rare_collections(),
    ):
        return trio.run(main, loop, clock=loop)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Nearly all objects live long, and looking through them again and again takes a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(10_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
