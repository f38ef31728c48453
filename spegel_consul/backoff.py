"""The pause after a failed question to a server, and the index from which the next one waits.

All tasks that poll Consul, Nomad or another source share these two objects, which have no I/O.  The rules of the index
are those of "Blocking Queries: implementation details" in Consul's manual.

A new rule about the time or the index of a repeated question belongs here.
"""

from __future__ import annotations

import random


class Backoff:
    """Random pauses that grow, so that nodes that failed at the same moment do not return at the same moment."""

    def __init__(self, first: float, cap: float, rng: random.Random) -> None:
        self._first, self.cap, self._rng = first, cap, rng
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure: up to twice as long each time, at most ``cap``."""
        self._failures = min(self._failures + 1, 30)
        return self._rng.uniform(self._first / 2, min(self.cap, self._first * 2**self._failures))

    def reset(self) -> None:
        """A question was answered; the next pause is a first one."""
        self._failures = 0


class BlockingIndex:
    """The index for the next blocking query; 0 asks for an answer at once."""

    def __init__(self) -> None:
        self.value = 0

    def advance(self, answered: int) -> None:
        """Note the index of an answer; 0 stands for an answer without an index."""
        if 0 < answered < self.value:
            self.value = 0  # because the servers were restored from a snapshot, or the entry was collected
        else:
            self.value = max(answered, self.value, 1)  # because a query with index 0 does not block

    def reset(self) -> None:
        """Ask for an answer at once; needed after each failure, because another agent may answer next."""
        self.value = 0
