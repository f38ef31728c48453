# One lookup, decided without clock or connections.
#
# The peers nearest to the key hold its records, so three of them are asked at once: three at random out of
# the dozen nearest, because a layer that a thousand nodes want is not to be asked for at the same three, and those
# first to whom no connection must be made.
# When one has answered another is asked in its place, and when none has answered for a hedge interval one
# more is asked on top: a slow or hung peer costs one interval, not its timeout.  The interval is what nine of
# ten answers took of late, so it fits a rack as well as two continents.  Answers also name peers nearer to
# the key; they enter the membership, and as the candidates are read from there each time, a node that knows
# few members still converges like Kademlia does.
#
# It ends when enough providers are found; when some are found and the three nearest that could answer have
# answered (they hold the same records, so the others would say the same); or when nobody is left to ask.

"""The lookup of one key: whom to ask, when to stop."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

PARALLEL = 3
"""Questions under way at once (alpha of Kademlia), and answers that are enough once something was found."""

SPREAD = 12
"""Out of how many of the nearest the next one to ask is drawn."""

HEDGE = 0.020
"""Seconds without an answer after which one more peer is asked, while too few answers were seen to know better."""

_SHORTEST_HEDGE, _LONGEST_HEDGE = 0.005, 0.150
_ENOUGH, _REMEMBERED = 16, 128


class AnswerTimes:
    """How long answers took of late, in seconds, and the hedge interval that follows from it."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)

    def took(self, seconds: float) -> None:
        """An answer came after ``seconds``."""
        self._times.append(seconds)

    @property
    def hedge(self) -> float:
        """What nine of ten answers took, within bounds."""
        if len(self._times) < _ENOUGH:
            return HEDGE
        percentile = sorted(self._times)[len(self._times) * 9 // 10]
        return min(_LONGEST_HEDGE, max(_SHORTEST_HEDGE, percentile))


class Lookup:
    """What to do next for one key.

    ``closest`` reads the present candidates, nearest first; ``in_touch`` says whether one needs no new connection.
    """

    def __init__(
        self,
        closest: Callable[[], Sequence[bytes]],
        *,
        count: int,
        exclude: bytes,
        hedge: float = HEDGE,
        in_touch: Callable[[bytes], bool] = lambda peer: True,
        rng: random.Random | None = None,
    ) -> None:
        self._in_touch = in_touch
        self._closest = closest
        self._count = count
        self._hedge = hedge
        self._rng = rng or random.Random()
        self._seen = {exclude}
        self._asked: set[bytes] = set()
        self._open: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._hedges = 0
        self._quiet_since = 0.0
        self._exhausted = False

    @property
    def found(self) -> int:
        """How many providers were yielded."""
        return len(self._seen) - 1

    @property
    def wake_at(self) -> float:
        """When :meth:`ask` is to be called though nothing happened; infinity if nobody is left to ask."""
        return math.inf if self._exhausted else self._quiet_since + self._hedge

    def offer(self, providers: Iterable[bytes]) -> list[bytes]:
        """Those of ``providers`` to yield: each once, and no more than ``count`` in all."""
        fresh = []
        for provider in providers:
            if provider not in self._seen and self.found < self._count:
                self._seen.add(provider)
                fresh.append(provider)
        return fresh

    def answered(self, peer: bytes, now: float) -> None:
        """``peer`` answered; its providers go to :meth:`offer`."""
        self._open.discard(peer)
        self._answered.add(peer)
        self._quiet_since = now

    def failed(self, peer: bytes, now: float) -> None:
        """``peer`` did not answer in time, or can't be reached."""
        self._open.discard(peer)
        self._quiet_since = now

    def ask(self, now: float) -> list[bytes]:
        """Whom to ask now; call it at the start, after each answer or failure, and at :attr:`wake_at`."""
        waiting = [peer for peer in self._closest() if peer not in self._asked]
        free = PARALLEL + self._hedges - len(self._open)
        if free <= 0 and now >= self._quiet_since + self._hedge:
            self._hedges += 1
            free = 1
        near = waiting[:SPREAD]
        chosen = self._rng.sample(near, len(near))
        chosen.sort(key=self._in_touch, reverse=True)
        del chosen[max(0, free) :]
        if chosen:
            self._quiet_since = now
        self._exhausted = len(chosen) == len(waiting)
        self._asked.update(chosen)
        self._open.update(chosen)
        return chosen

    @property
    def done(self) -> bool:
        """Whether nothing more is to be asked or waited for."""
        if self.found >= self._count:
            return True
        if self.found and len(self._answered) >= PARALLEL:
            return True
        return not self._open and all(peer in self._asked for peer in self._closest())
