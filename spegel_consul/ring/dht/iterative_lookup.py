"""The lookup of one key: which peers to ask, and when to stop.  It has neither clock nor connections.

The peers nearest to the key hold its records, so three of them are asked in parallel.  They are drawn at random from
the twelve nearest, so that a layer which a thousand nodes want is not requested from the same three; peers that
need no new connection come first, and of those the one that is about to be asked about the key anyway (``busy``),
because a second question to it wakes no further process.

An answer or a failure frees its place for another peer.  If no answer arrives within the hedge interval, one more peer
is asked in addition, so a slow or hung peer costs one interval instead of its timeout.  The interval is the 90th
percentile of recent answer times, so it fits one rack as well as two continents.

Answers also name peers nearer to the key.  They enter the membership, and the candidates are read from there each
time, so a node that knows few members still converges as Kademlia does.

The lookup ends when

* this node's own records name providers at ``count`` addresses; or
* some are found and three peers have answered (they hold the same records, so the others would add nothing); or
* none is found, three certain answers were empty, and all candidates that are not certain have answered; or
* no candidate is left.

A record is announced to the twenty nearest peers, and the three that are asked are among them.  So their empty answers
are certain, with one exception: a peer that has just joined or restarted lacks the records until the providers have
noticed it.  So an empty answer is certain if the peer has been alive and in contact for ten seconds (``settled``).
A peer that is not settled is asked as well, because it may still be announcing keys of its own.
This node's own records are one certain answer if it is among the twenty nearest itself (``own_settled``): a miss costs
two questions in a ring of up to twenty nodes, and three in a larger one.  If three certain answers can't be had, all
candidates are asked.  In a simulated ring of 200 nodes, in which one of seventy is replaced or restarted every seven
seconds, the early end costs no hit.  The one price is a key of which the announcement is still under way.

The names in one answer never end a lookup, because one peer can name any number of providers that do not exist.  Each
answer is worth ``count`` names, of which the names that were found already are the first, so honest peers that agree
add nothing.  Of the other names those with new addresses come first, because a node may have many ids.  The three
questions are sent together, so the wait for all their answers costs no message and does not delay the first provider.
Once something is found, no more peers are asked than are missing to three answers.

Providers that may be gone (``Member.may_return``) are yielded at the end, if fewer than ``count`` addresses were found.

A rule about the choice of peers or the end of a lookup belongs here; the questions are sent by ``router``.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence, Set

PARALLEL = 3
"""Parallel questions (alpha of Kademlia), and the number of answers that suffices once a provider was found."""

CERTAIN = 3
"""Certain empty answers that end a lookup without a provider.

A record that at most two of the twenty peers lack is always found; one that half of them lack, in nine of ten lookups.
"""

SPREAD = 12
"""The next peers to ask are drawn from so many of the nearest candidates."""

HEDGE = 0.020
"""Seconds; the hedge interval until enough answers were timed."""

_SHORTEST_HEDGE, _LONGEST_HEDGE = 0.005, 0.150
_ENOUGH, _REMEMBERED = 16, 128


class AnswerTimes:
    """Recent answer times in seconds, and the hedge interval that follows from them."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_REMEMBERED)
        self._new = 0
        self._hedge = HEDGE

    def took(self, seconds: float) -> None:
        """Record an answer that came after ``seconds``."""
        self._times.append(seconds)
        self._new += 1

    @property
    def hedge(self) -> float:
        """The 90th percentile of recent answer times, within bounds."""
        if self._new >= _ENOUGH:
            self._new = 0
            percentile = sorted(self._times)[len(self._times) * 9 // 10]
            self._hedge = min(_LONGEST_HEDGE, max(_SHORTEST_HEDGE, percentile))
        return self._hedge


class Lookup:
    """The state of one lookup.

    ``closest`` reads the current candidates, nearest first. ``in_touch`` is true for a peer that needs no new
    connection. ``settled`` is true for a peer whose empty answer is certain; ``own_settled``, if the
    records of this node are. ``busy``: a peer that this node asks something else at this moment.
    """

    def __init__(
        self,
        closest: Callable[[], Sequence[bytes]],
        *,
        count: int,
        exclude: bytes,
        hedge: float = HEDGE,
        in_touch: Callable[[bytes], bool] = lambda peer: True,
        settled: Callable[[bytes], bool] = lambda peer: False,
        own_settled: bool = False,
        busy: bytes | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._in_touch = in_touch
        self._settled_now = settled
        self._settled: dict[bytes, bool] = {}
        self._certain = int(own_settled)
        self._busy = busy
        self._closest = closest
        self._count = count
        self._hedge = hedge
        self._rng = rng or random.Random()
        self._me = exclude
        self._found: dict[bytes, Hashable] = {}  # by provider: its address
        self._last: dict[bytes, Hashable] = {}
        self._own_suffice = False
        self._asked: set[bytes] = set()
        self._open: set[bytes] = set()
        self._answered: set[bytes] = set()
        self._hedges = 0
        self._quiet_since = 0.0
        self._exhausted = False

    @property
    def found(self) -> int:
        """The number of distinct addresses of the providers that were yielded."""
        return len(set(self._found.values()))

    @property
    def wake_at(self) -> float:
        """The time at which :meth:`ask` must be called without an event; infinity if no candidate is left."""
        return math.inf if self._exhausted else self._quiet_since + self._hedge

    def offer(
        self, providers: Mapping[bytes, Hashable], *, last: Set[bytes] = frozenset(), own: bool = False
    ) -> list[bytes]:
        """The providers of one answer to yield, of ``providers`` (id to address) in the order to be used.

        Those in ``last`` may be gone: they are kept for the end. ``own``: the answer is this node's records.
        """
        wanted = self._count - len({self._found[each] for each in providers if each in self._found})
        known = set(self._found.values())
        new: list[bytes] = []
        others: list[bytes] = []
        for provider, address in providers.items():
            if provider in last:
                self._last[provider] = address
            elif provider != self._me and provider not in self._found:
                (others if address in known else new).append(provider)
                known.add(address)
        fresh = (new + others)[: max(0, wanted)]
        self._found.update({provider: providers[provider] for provider in fresh})
        self._own_suffice |= own and self.found >= self._count
        return fresh

    def finish(self) -> list[bytes]:
        """The providers to yield at the end, because fewer than ``count`` addresses were found."""
        rest = [each for each, at in self._last.items() if each not in self._found and at not in self._found.values()]
        return rest[: max(0, self._count - self.found)]

    def answered(self, peer: bytes, now: float) -> None:
        """``peer`` answered; pass its providers to :meth:`offer`."""
        self._open.discard(peer)
        self._answered.add(peer)
        self._certain += self._settled_now(peer)
        self._quiet_since = now

    def is_settled(self, peer: bytes) -> bool:
        """Whether ``peer`` was settled when this lookup first looked; a lookup is short, and looks dozens of times."""
        settled = self._settled.get(peer)
        if settled is None:
            settled = self._settled[peer] = self._settled_now(peer)
        return settled

    def failed(self, peer: bytes, now: float) -> None:
        """``peer`` did not answer in time, or can't be reached."""
        self._open.discard(peer)
        self._quiet_since = now

    def ask(self, now: float) -> list[bytes]:
        """The peers to ask now; call it at the start, after each answer or failure, and at :attr:`wake_at`."""
        waiting = [peer for peer in self._closest() if peer not in self._asked]
        chosen = self._choose(waiting)
        if not chosen and now >= self._quiet_since + self._hedge:
            self._hedges += 1
            chosen = self._choose(waiting, least=1)
        if chosen:
            self._quiet_since = now
        self._exhausted = len(chosen) == len(waiting)
        self._asked.update(chosen)
        self._open.update(chosen)
        return chosen

    def _needed(self, least: int) -> int:
        """How many more settled peers are to be asked while nothing is found."""
        return max(CERTAIN - self._certain + self._hedges - sum(map(self.is_settled, self._open)), least)

    def _choose(self, waiting: Sequence[bytes], *, least: int = 0) -> list[bytes]:
        """The peers of ``waiting`` to ask now, ``least`` of them even if enough are asked already."""
        if not self._any and self._needed(least) <= 0 and all(map(self.is_settled, waiting)):
            return []
        order = self._rng.sample(waiting[:SPREAD], min(SPREAD, len(waiting)))
        order.sort(key=lambda peer: (self._in_touch(peer), self.is_settled(peer), peer == self._busy), reverse=True)
        if self._any:
            count = PARALLEL - len(self._answered)
        else:
            count = PARALLEL
            settled = [peer for peer in order if self.is_settled(peer)]
            fresh = [peer for peer in (*order, *waiting[SPREAD:]) if not self.is_settled(peer)]
            order = settled[: self._needed(least)] + fresh
        return order[: max(count + self._hedges - len(self._open), least)]

    @property
    def done(self) -> bool:
        """Whether the lookup has ended."""
        if self._own_suffice or (self._any and len(self._answered) >= PARALLEL):
            return True
        left = [peer for peer in self._closest() if peer in self._open or peer not in self._asked]
        if not self._any and self._certain >= CERTAIN:
            return all(map(self.is_settled, left))
        return not self._open and not left

    @property
    def _any(self) -> bool:
        return bool(self._found or self._last)
