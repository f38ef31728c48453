# A start in which all nodes learn of each other is most of what a run costs, and it need not be another one for each
# seed.  A process in virtual time waits for nothing outside, so it can be forked in the midst of it: one start, and
# from there a process for each seed.

"""Runs that have their beginning in common."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Forks:
    """A process for each of ``seeds``, ``jobs`` at a time; ``tell`` is given what each came to, in their order."""

    def __init__(self, seeds: Sequence[int], jobs: int, tell: Callable[[Any], None]) -> None:
        self._seeds = seeds
        self._jobs = jobs
        self._tell = tell
        self._out: int | None = None

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around all of it: a process that was forked does not come out."""
        try:
            yield
        except BaseException:
            if self._out is None:
                raise
            traceback.print_exc()
            os._exit(1)

    def end(self, result: object) -> None:
        """The end of a process that was forked, with what it came to; of no other one."""
        # Trio's own end is left out: it would use up what wakes the others at theirs
        if self._out is not None:
            with os.fdopen(self._out, "wb") as out:
                pickle.dump(result, out)
            os._exit(0)

    def branch(self) -> int | None:
        """Go on with the seed that this returns, in as many processes; where it returns None, all have ended.

        Raises RuntimeError if one of them broke.
        """
        sys.stdout.flush()
        gc.collect()
        gc.freeze()  # what is common stays in common memory, and is not looked through again
        running: deque[tuple[int, int, int]] = deque()
        for seed in self._seeds:
            if len(running) == self._jobs:
                self._await(*running.popleft())
            inlet, out = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(inlet)
                self._out = out
                return seed
            os.close(out)
            running.append((seed, pid, inlet))
        while running:
            self._await(*running.popleft())
        gc.unfreeze()
        return None

    def _await(self, seed: int, pid: int, inlet: int) -> None:
        with os.fdopen(inlet, "rb") as file:
            said = file.read()
        os.waitpid(pid, 0)
        if not said:
            raise RuntimeError(f"seed {seed} broke")
        self._tell(pickle.loads(said))
