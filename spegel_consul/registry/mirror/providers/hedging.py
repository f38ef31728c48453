"""The order in which peers are asked for content: hedged requests.

Providers arrive while the lookup goes on. The first one is asked at once. Another one is asked when a question has
failed, or when the hedge interval has passed without an answer. For a tag the first two are asked at once, because they
may differ. The deadline of the lookup counts only while no
question is open, because each question has deadlines of its own. A provider that was slow a short time ago is asked
only if the lookup yields no other one within the hedge interval, and so is one in another zone. Among those that wait,
the one with the least rank is asked first, and of equal ones the one that was found first. An address is asked once,
under any peer id, because records of one address with many ids must not use up the attempts.

A provider that refuses because it is busy has the content, so it is no attempt that failed: the next provider is asked
at once. If all providers are busy, the race waits for one of them, for a few seconds at most. A moment costs the client
less than a copy from upstream costs the cluster, because a full node has room again as soon as one of its transfers
ends, and the nodes that it serves become providers. A longer wait would hold a client whose upstream may be fast.

The race is a plain object: events and the time go in, a decision comes out. A new rule about the order of questions or
the number of questions belongs here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import Provider

BUSY_PATIENCE = 5.0
"""Seconds that a race waits for busy providers while there is no other one."""

PROMISED_PATIENCE = 60.0
"""The same for a client that has no other source, so that its pull would fail."""

_MOST_REFUSALS = 64  # refusals between two accepted answers that are no attempts; time bounds them otherwise


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this provider now."""

    provider: Provider


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing before the time ``until`` (in seconds, may be infinite) unless an event comes first.

    ``starved``: another provider would be asked now if one were known.
    """

    until: float
    starved: bool = False


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Give up: no provider is left to ask."""

    reason: str


class Race:
    """Decides which provider to ask. ``resolve_timeout`` and ``hedge`` are seconds.

    ``attempts`` is the largest number of providers to ask between two accepted answers; providers for which ``is_slow``
    is true are asked after all others, and those for which ``is_far`` is true after near ones that the lookup may still
    yield. ``rank`` orders the others, and of several with the least rank ``choose`` returns the one to ask. The first
    ``abreast`` questions do not wait for each other. ``busy_patience``: seconds that the race waits for busy providers.
    """

    def __init__(
        self,
        now: float,
        *,
        resolve_timeout: float,
        attempts: int,
        hedge: float,
        abreast: int = 1,
        is_slow: Callable[[Provider], bool] = lambda provider: False,
        is_far: Callable[[Provider], bool] = lambda provider: False,
        rank: Callable[[Provider], int] = lambda provider: 0,
        choose: Callable[[Sequence[Provider]], Provider] = lambda providers: providers[0],
        busy_patience: float = BUSY_PATIENCE,
    ) -> None:
        self._is_slow = is_slow
        self._is_far = is_far
        self._rank = rank
        self._prefer = choose
        self._busy_patience = busy_patience
        self._busy: dict[Provider, float] = {}
        self._busy_until = math.inf
        self._refusals = 0
        self._skip_slow = False
        self._resolve_timeout = resolve_timeout
        self._attempts = attempts
        self._hedge = hedge
        self._abreast = abreast
        self._waiting: deque[Provider] = deque()
        self._asked: set[tuple[str, int]] = set()
        self._excluded: set[tuple[str, int]] = set()
        self._open: set[Provider] = set()
        self._started = 0
        self._last_start = -math.inf
        self._idle_since = now
        self._ended = False

    def found(self, provider: Provider) -> None:
        """Add a provider that the lookup yielded."""
        if provider.registry not in self._asked and all(each.registry != provider.registry for each in self._waiting):
            self._waiting.append(provider)

    def exclude(self, provider: Provider) -> None:
        """Never ask the provider."""
        self._asked.add(provider.registry)
        self._excluded.add(provider.registry)
        self._busy = {each: at for each, at in self._busy.items() if each.registry != provider.registry}
        for each in [each for each in self._waiting if each.registry == provider.registry]:
            self._waiting.remove(each)

    def again(self, provider: Provider) -> None:
        """Allow one more question to the provider, after all others."""
        self._asked.discard(provider.registry)
        self.found(provider)

    @property
    def knows_nobody(self) -> bool:
        """Whether no provider is being asked or waits to be asked."""
        return not self._open and not self._waiting

    @property
    def asks_one(self) -> bool:
        """Whether one provider is being asked."""
        return len(self._open) == 1

    def put_back(self, provider: Provider, now: float) -> None:
        """The provider of an Ask was not asked, because there is an answer without it."""
        self.failed(provider, now)
        self.again(provider)

    def lookup_begun(self, *, anew: bool = False) -> None:
        """Note that a lookup may yield further providers; if ``anew``, also those that did not have the content."""
        self._ended = False
        if anew:
            self._asked &= self._excluded | {each.registry for each in self._open}

    def lookup_ended(self) -> None:
        """Note that the lookup yields no further provider."""
        self._ended = True

    def failed(self, provider: Provider, now: float) -> None:
        """Note that the provider did not answer, or that its answer was not accepted; it is not asked again."""
        self._open.discard(provider)
        if not self._open:
            self._idle_since = now

    def refused(self, provider: Provider, wait: float | None, now: float) -> None:
        """Note that the provider is busy. It may be asked again after ``wait`` seconds; None: it may not."""
        self.failed(provider, now)
        self._refusals += 1
        if self._refusals <= _MOST_REFUSALS:
            self._started -= 1
        if wait is not None:
            self._busy_until = min(self._busy_until, now + self._busy_patience)
            self._busy[provider] = now + wait

    def by_secondary(self, provider: Provider, other: Provider) -> bool:
        """Replace a provider that is not reached by ``other``, its secondary address, unless that was asked already.

        Return whether ``other`` is to be asked.
        """
        if other.registry in self._asked:
            return False
        self.exclude(other)
        self._open.discard(provider)
        self._open.add(other)
        return True

    def accepted(self, provider: Provider) -> None:
        """Note that the provider's answer is used. The other providers with open questions may be asked again."""
        self._open.discard(provider)
        self._waiting.extendleft(self._open)
        self._asked.difference_update(each.registry for each in self._open)
        self._open.clear()
        self._started = self._refusals = 0
        self._last_start = -math.inf

    def resumed(self, now: float, *, skip_slow: bool = False) -> None:
        """Ask for another answer, with the rest of the accepted one. ``skip_slow``: do not ask slow providers."""
        self._idle_since = now
        self._started = self._refusals = 0
        self._busy_until = math.inf
        self._skip_slow = skip_slow

    def next(self, now: float) -> Ask | Wait | Exhausted:
        """Return the next action. The provider of an Ask counts as asked."""
        is_due = not self._open or self._started < self._abreast or now >= self._last_start + self._hedge
        provider = self._choose(now) if self._started < self._attempts and is_due else None
        if provider is not None:
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
        if self._ended and self._busy:
            free_at = min(self._busy.values())
            if max(free_at, now) < self._busy_until and not self._skip_slow:
                return Wait(free_at)
            return Exhausted("the peers that have it are busy")
        if self._ended:
            return Exhausted("no further peer has it" if self._asked else "no peer has it")
        deadline = self._idle_since + self._resolve_timeout
        if now >= deadline and self._busy:
            self._ended = True
            return self.next(now)
        if now >= deadline:
            return Exhausted(f"no peer was found within {self._resolve_timeout * 1000:g} ms")
        if any(not (self._skip_slow and self._is_slow(each)) for each in self._waiting):
            deadline = min(deadline, self._idle_since + self._hedge)
        return Wait(deadline, starved=True)

    def _choose(self, now: float) -> Provider | None:
        if not self._waiting and self._busy and not self._open:
            self._readmit(now)
        quick = [provider for provider in self._waiting if not self._is_slow(provider)]
        near = [provider for provider in quick if not self._is_far(provider)]
        if near:
            return self._nearest(near)
        if not (self._ended or now >= self._idle_since + min(self._hedge, self._resolve_timeout)):
            return None
        if quick:
            return self._nearest(quick)
        return self._waiting[0] if self._waiting and not self._skip_slow else None

    def _nearest(self, fit: Sequence[Provider]) -> Provider:
        if len(fit) == 1:
            return fit[0]
        ranks = list(map(self._rank, fit))
        least = min(ranks)
        return self._prefer([provider for provider, rank in zip(fit, ranks, strict=True) if rank == least])

    def _readmit(self, now: float) -> None:
        """Let the busy providers whose time has come be asked again."""
        for provider in [each for each, free_at in self._busy.items() if free_at <= now < self._busy_until]:
            del self._busy[provider]
            self.again(provider)
