# Two small cores that everything which polls Consul shares: when to ask again after a failure, and from which
# index to wait.  The index rules are those of "Blocking Queries: implementation details" in Consul's manual.

"""How fast, and from where, Consul is asked again."""

from __future__ import annotations

import random


class Backoff:
    """Growing random delays, so that nodes that failed together don't return together."""

    def __init__(self, first: float, cap: float, rng: random.Random) -> None:
        self._first, self.cap, self._rng = first, cap, rng
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure: up to twice as long each time, never above ``cap``."""
        self._failures = min(self._failures + 1, 30)
        return self._rng.uniform(self._first / 2, min(self.cap, self._first * 2**self._failures))

    def reset(self) -> None:
        """It worked."""
        self._failures = 0


class BlockingIndex:
    """The index for the next blocking query; 0 asks for an answer at once."""

    def __init__(self) -> None:
        self.value = 0

    def advance(self, answered: int) -> None:
        """Note the index of an answer; ``answered`` 0 means that it carried none."""
        if 0 < answered < self.value:
            self.value = 0  # the servers were restored from a snapshot, or the entry was collected
        else:
            self.value = max(answered, self.value, 1)  # 0 would not block

    def reset(self) -> None:
        """Ask from the beginning: after every failure, because the agent may be another one."""
        self.value = 0
