# A start in which all nodes learn of each other is a good part of what a run costs, and it need not be another one for
# each seed.  A process in virtual time waits for nothing outside, so it can be forked in the midst of it: a process for
# each start, and from there one for each seed.

"""Runs of which some have their beginning in common, each in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_LOOK_EVERY = 0.02

_fork = multiprocessing.get_context("fork")


class Forks:
    """Goes through ``groups`` of seeds, ``jobs`` processes at a time.

    ``start(number, forks)`` is called in a process for each group. It does what its seeds have in common, calls
    :meth:`branch`, and goes on with the seed that it was given, up to :meth:`end`.
    """

    def __init__(self, groups: Sequence[Sequence[int]], jobs: int, start: Callable[[int, Forks], object]) -> None:
        self._groups = groups
        self._jobs = jobs
        self._start = start
        self._slots = _fork.Semaphore(jobs)
        self._results = _fork.SimpleQueue()
        self._seeds: Sequence[int] = ()
        self._seed: int | None = None

    def run(self) -> Iterator[Any]:
        """What became of each seed, in their order. Raises RuntimeError if one of them broke."""
        came: dict[int, Any] = {}
        waiting, running = list(range(len(self._groups))), dict[int, int]()
        try:
            for seed in (seed for group in self._groups for seed in group):
                while seed not in came:
                    while waiting and len(running) < self._jobs:
                        number = waiting.pop(0)
                        running[self._fork_start(number)] = self._groups[number][0]
                    if self._results.empty():
                        self._reap_starts(running)
                        continue
                    about, result = self._results.get()
                    if result is None:
                        raise RuntimeError(f"seed {about} broke")
                    came[about] = result
                yield came.pop(seed)
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

    def _reap_starts(self, running: dict[int, int]) -> None:
        time.sleep(_LOOK_EVERY)
        for pid, seed in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                if status:
                    raise RuntimeError(f"seed {seed} broke, or another one that has its start")

    def _fork_start(self, number: int) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            os.setpgid(pid, pid)
            return pid
        os.setpgid(0, 0)
        self._seeds = self._groups[number]
        try:
            self._slots.acquire()
            self._start(number, self)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def branch(self) -> int:
        """Go on with the seed that this returns, in a process for each; the process that asks does not come back."""
        gc.collect()
        gc.freeze()  # what is common stays in common memory, and is not looked through again
        self._slots.release()
        running: dict[int, int] = {}
        left = list(self._seeds)
        while left or running:
            if left and self._slots.acquire(timeout=_LOOK_EVERY):
                seed = left.pop(0)
                if not (pid := os.fork()):
                    self._seed = seed
                    return seed
                running[pid] = seed
            self._reap(running)
        os._exit(0)

    def _reap(self, running: dict[int, int]) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(_LOOK_EVERY)
                return
            self._slots.release()
            seed = running.pop(pid)
            if status:
                self._results.put((seed, None))

    def end(self, result: object) -> None:
        """This is what became of the seed, whose process ends."""
        # Trio's own end is left out: it would use up what wakes the others at theirs
        self._results.put((self._seed, result))
        os._exit(0)
