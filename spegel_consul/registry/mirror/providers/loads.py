"""Loads: how much the registries of peers have to do, and which of several providers is asked first.

Each answer of a peer tells how many bodies it is sending. Of two providers that are drawn at random, the less loaded
one is asked. Two choices keep the most loaded node near the mean, while the least loaded one of all that are known
would be asked by all nodes at the same moment, because what they know is some seconds old (Mitzenmacher, "The power of
two choices in randomized load balancing"). A question adds one to what is known of its provider, so that the layers of
one image, which are asked for together, do not all go to the same one.

Loads are claims. A peer that tells too little attracts questions, one that tells too much sheds them, and neither
changes a byte. A peer that tells nothing, such as Go Spegel, is neither preferred nor avoided.

A peer that refuses because it is busy is asked after others until the time that it names, and gets no penalty. One that
never does anything else is not waited for. This object has no I/O and no clock. A new rule about which of several
providers is asked because of their loads belongs here; the order of questions belongs to
:mod:`spegel_consul.registry.mirror.providers.hedging`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.providers.suspects import Address

FRESH = 5.0
"""Seconds for which a load is believed."""

MOST_LOAD = 10_000
"""The largest load that is believed; larger ones are taken for this one."""

SHORTEST_WAIT, LONGEST_WAIT = 0.25, 2.0
"""Seconds of the hint of a busy peer that are believed; others are taken for the nearer of these."""

DOUBTED_AFTER = 90.0
"""Seconds of nothing but refusals after which a busy peer is not waited for; more than any request waits."""

_FORGIVEN = 10.0  # seconds without a question after which older refusals say nothing
_REMEMBERED = 300.0  # seconds for which refusals are remembered
_MOVED_EVERY = 1.0  # seconds; an entry becomes the newest no more often than that, because each hit needs entries
_MOST = 4096


@dataclass(slots=True)
class _Known:
    """``load`` is believed until the time ``until``; ``refuses_since``: the first refusal since the last answer."""

    load: int = 0
    until: float = 0.0
    busy_until: float = 0.0
    refuses_since: float | None = None
    changed: float = 0.0


class Loads:
    """What peers tell of their loads, by the address of the registry; ``rng`` draws."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()
        self._known: BoundedDict[Address, _Known] = BoundedDict(_MOST)

    def told(self, registry: Address, field: str | None, now: float) -> None:
        """Note an answer with content; ``field`` is the value of its header with the load, None if there is none."""
        load = _number(field)
        known = self._known.get(registry)
        if load is None and known is None:
            return
        known = self._entry(registry, now)
        known.refuses_since, known.busy_until = None, 0.0
        if load is not None:
            known.load, known.until = min(load, MOST_LOAD), now + FRESH

    def asked(self, registry: Address, now: float) -> None:
        """Note a question: the peer has one body more to send until it tells another load."""
        known = self._known.get(registry)
        if known is not None and known.until > now:
            known.load += 1

    def refused(self, registry: Address, hint: float, now: float) -> float | None:
        """Note that the peer is busy, and expects room in ``hint`` seconds.

        Return the seconds to wait before it is asked again, or None if it is not to be waited for.
        """
        known = self._entry(registry, now)
        if known.refuses_since is None or now > known.busy_until + _FORGIVEN:
            known.refuses_since = now
        # not all at the same moment, because those that were refused together would come back together
        wait = min(max(hint, SHORTEST_WAIT), LONGEST_WAIT) * self._rng.uniform(0.75, 1.25)
        known.busy_until = now + wait
        return wait if now - known.refuses_since < DOUBTED_AFTER else None

    def is_busy(self, registry: Address, now: float) -> bool:
        """Whether the peer has refused and expects no room yet."""
        known = self._known.get(registry)
        return known is not None and known.busy_until > now

    def choose(self, waiting: Sequence[Provider], now: float) -> Provider:
        """Return the one of ``waiting``, which has at least one, to ask first."""
        if len(waiting) == 1:
            return waiting[0]
        free = [each for each in waiting if not self.is_busy(each.registry, now)] or waiting
        if len(free) == 1:
            return free[0]
        first, second = self._rng.sample(free, 2)
        one, other = self._known.get(first.registry), self._known.get(second.registry)
        if one is not None and other is not None and one.until > now < other.until and other.load < one.load:
            return second
        return first

    def _entry(self, registry: Address, now: float) -> _Known:
        known = self._known.get(registry)
        if known is not None and now < known.changed + _MOVED_EVERY:
            return known
        known = known or _Known()
        known.changed = now
        self._known.drop_oldest(lambda each: each.changed + _REMEMBERED <= now)
        self._known[registry] = known
        return known


def _number(field: str | None) -> int | None:
    """Return the number that a header field's value is, or None if it is none."""
    if field is None or not (field.isascii() and field.isdigit()):
        return None
    return int(field[:9])
