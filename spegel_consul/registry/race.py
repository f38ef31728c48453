# Which source to try next?
#
# Providers arrive while the lookup goes on.  The first is asked at once; another one is asked when a question
# failed, or when the hedge interval passed without an answer.  The deadline of the lookup counts only while
# nobody is being asked: as long as a question is open there is hope, and the question has deadlines of its own.
#
# A plain object: events and the time go in, a decision comes out.

"""The order in which peers are asked for content."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from spegel_consul.ring import Provider


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this provider now."""

    provider: Provider


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this time (in seconds, may be infinite) unless an event comes first.

    ``starved``: another provider would be asked now if there were one.
    """

    until: float
    starved: bool = False


@dataclass(frozen=True, slots=True)
class Exhausted:
    """There is nobody left to ask."""

    reason: str


class Race:
    """Decides whom to ask. ``resolve_timeout`` and ``hedge`` are seconds.

    ``attempts`` bounds how many providers are asked between two answers that were accepted.
    """

    def __init__(self, now: float, *, resolve_timeout: float, attempts: int, hedge: float) -> None:
        self._resolve_timeout = resolve_timeout
        self._attempts = attempts
        self._hedge = hedge
        self._waiting: deque[Provider] = deque()
        self._asked: set[Provider] = set()
        self._open: set[Provider] = set()
        self._started = 0
        self._last_start = -math.inf
        self._idle_since = now
        self._ended = False

    def found(self, provider: Provider) -> None:
        """The lookup yielded a provider."""
        if provider not in self._asked and provider not in self._waiting:
            self._waiting.append(provider)

    def exclude(self, provider: Provider) -> None:
        """The provider is not to be asked."""
        self._asked.add(provider)
        if provider in self._waiting:
            self._waiting.remove(provider)

    def again(self, provider: Provider) -> None:
        """The provider may be asked once more, before all others."""
        self._asked.discard(provider)
        self._waiting.appendleft(provider)

    def lookup_ended(self) -> None:
        """The lookup will yield nobody else."""
        self._ended = True

    def failed(self, provider: Provider, now: float) -> None:
        """The provider did not answer, or its answer was not accepted; it is not asked again."""
        self._open.discard(provider)
        if not self._open:
            self._idle_since = now

    def turned(self, provider: Provider, other: Provider) -> bool:
        """The provider is not reached; ``other`` is its other address. Returns whether that is asked in its stead."""
        if other in self._asked:
            return False
        self.exclude(other)
        self._open.discard(provider)
        self._open.add(other)
        return True

    def accepted(self, provider: Provider) -> None:
        """The provider's answer is being used. The others that were being asked stay good for later."""
        self._open.discard(provider)
        self._waiting.extendleft(self._open)
        self._asked -= self._open
        self._open.clear()
        self._started = 0
        self._last_start = -math.inf

    def resumed(self, now: float) -> None:
        """The answer that was accepted has failed in its middle, and another one is wanted for the rest."""
        self._idle_since = now

    def next(self, now: float) -> Ask | Wait | Exhausted:
        """What to do now. An Ask counts as asked."""
        may_ask = self._waiting and self._started < self._attempts
        if may_ask and (not self._open or now >= self._last_start + self._hedge):
            provider = self._waiting.popleft()
            self._asked.add(provider)
            self._open.add(provider)
            self._started += 1
            self._last_start = now
            return Ask(provider)
        if self._open:
            if self._started >= self._attempts:
                return Wait(math.inf)
            hedge_at = self._last_start + self._hedge
            return Wait(math.inf, starved=True) if now >= hedge_at else Wait(hedge_at)
        if self._started >= self._attempts:
            return Exhausted(f"{self._started} peers were asked and none had it")
        if self._ended:
            return Exhausted("no further peer has it" if self._asked else "no peer has it")
        deadline = self._idle_since + self._resolve_timeout
        if now >= deadline:
            return Exhausted(f"no peer was found within {self._resolve_timeout * 1000:g} ms")
        return Wait(deadline, starved=True)
