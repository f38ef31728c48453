# Which source to try next?
#
# Providers arrive while the lookup goes on.  The first is asked at once; another one is asked when a question
# failed, or when the hedge interval passed without an answer.  The deadline of the lookup counts only while
# nobody is being asked: as long as a question is open there is hope, and the question has deadlines of its own.
# A provider that was slow a moment ago waits for the lookup to name another one, as long as the hedge interval.
#
# An address is asked once, under whatever peer id: records of one address with many ids must not use up the attempts.
#
# A plain object: events and the time go in, a decision comes out.

"""The order in which peers are asked for content."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from spegel_consul.peers import Provider


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

    ``attempts`` bounds how many providers are asked between two answers that were accepted; ``is_slow`` names those
    that are asked after all others.
    """

    def __init__(
        self,
        now: float,
        *,
        resolve_timeout: float,
        attempts: int,
        hedge: float,
        is_slow: Callable[[Provider], bool] = lambda provider: False,
    ) -> None:
        self._is_slow = is_slow
        self._picky = False
        self._resolve_timeout = resolve_timeout
        self._attempts = attempts
        self._hedge = hedge
        self._waiting: deque[Provider] = deque()
        self._asked: set[tuple[str, int]] = set()
        self._open: set[Provider] = set()
        self._started = 0
        self._last_start = -math.inf
        self._idle_since = now
        self._ended = False

    def found(self, provider: Provider) -> None:
        """The lookup yielded a provider."""
        if provider.registry not in self._asked and all(each.registry != provider.registry for each in self._waiting):
            self._waiting.append(provider)

    def exclude(self, provider: Provider) -> None:
        """The provider is not to be asked."""
        self._asked.add(provider.registry)
        for each in [each for each in self._waiting if each.registry == provider.registry]:
            self._waiting.remove(each)

    def again(self, provider: Provider) -> None:
        """The provider may be asked once more, after all others."""
        self._asked.discard(provider.registry)
        self._waiting.append(provider)

    def lookup_ended(self) -> None:
        """The lookup will yield nobody else."""
        self._ended = True

    def failed(self, provider: Provider, now: float) -> None:
        """The provider did not answer, or its answer was not accepted; it is not asked again."""
        self._open.discard(provider)
        if not self._open:
            self._idle_since = now

    def by_secondary(self, provider: Provider, other: Provider) -> bool:
        """The provider is not reached; ``other`` is its other address. Returns whether that is asked in its stead."""
        if other.registry in self._asked:
            return False
        self.exclude(other)
        self._open.discard(provider)
        self._open.add(other)
        return True

    def accepted(self, provider: Provider) -> None:
        """The provider's answer is being used. The others that were being asked stay good for later."""
        self._open.discard(provider)
        self._waiting.extendleft(self._open)
        self._asked.difference_update(each.registry for each in self._open)
        self._open.clear()
        self._started = 0
        self._last_start = -math.inf

    def resumed(self, now: float, *, picky: bool = False) -> None:
        """Another answer is wanted for the rest of the one that was accepted. ``picky``: not from one that is slow."""
        self._idle_since = now
        self._started = 0
        self._picky = picky

    def next(self, now: float) -> Ask | Wait | Exhausted:
        """What to do now. An Ask counts as asked."""
        provider = self._choose(now) if self._started < self._attempts else None
        if provider is not None and (not self._open or now >= self._last_start + self._hedge):
            self._waiting.remove(provider)
            self._asked.add(provider.registry)
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
        if self._waiting and not self._picky:
            deadline = min(deadline, self._idle_since + self._hedge)
        return Wait(deadline, starved=True)

    def _choose(self, now: float) -> Provider | None:
        for provider in self._waiting:
            if not self._is_slow(provider):
                return provider
        settles = self._ended or now >= self._idle_since + min(self._hedge, self._resolve_timeout)
        return self._waiting[0] if self._waiting and settles and not self._picky else None
