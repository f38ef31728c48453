"""Nearness: the order of providers by place, round trip and throughput, and what another zone's providers are for.

The rank of a provider is its distance (see :mod:`spegel_consul.places`), then the class of its round trip, then the
class of its throughput in former transfers. The classes are wide, because providers of one class are asked in the
random order in which the lookup names them, and that spreads the load. In a ring without places, all nodes of one
network have one rank, so the order is the same as without this module.

A provider in another zone is far. With ``fallback`` it is asked once the lookup has ended or the hedge interval has
passed, and as well as near ones that do not answer; with ``prefer`` it is only asked after near ones that are known;
with ``never`` it is not asked. A provider with an unknown place is never far.

A new rule about what is near, or about what comes from another zone, belongs here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.metrics.counter import LabelledCounter
from spegel_consul.peers import Provider
from spegel_consul.places import DISTANCE_NAMES, NOWHERE, SAME_DATACENTER, Here

UNKNOWN = "unknown"
"""The distance of a provider if the place of either side is unknown, for people and metrics."""

_MIDDLING_TRIP, _LONG_TRIP = 0.02, 0.08
"""Seconds: the bounds of the classes of round trips, above what a busy node of the same network takes."""

_GOOD_RATE, _POOR_RATE = 8 << 20, 2 << 20
"""Bytes per second: the bounds of the classes of throughput."""

_LEAST_BYTES, _LEAST_WAIT = 1 << 20, 0.1  # of a transfer whose throughput is remembered, in seconds of waiting
_MOST = 4096
_FORGETS = 0.3  # the share of a new measurement


class CrossZone(enum.Enum):
    """When providers of other zones are asked: as any other but after near ones, only for want of near ones, never."""

    PREFER = "prefer"
    FALLBACK = "fallback"
    NEVER = "never"


class Nearness:
    """Ranks providers from ``here``, and counts what they send in ``received``, a counter by distance."""

    def __init__(self, here: Here, cross_zone: CrossZone, received: LabelledCounter) -> None:
        self.here = here
        self._fallback = cross_zone is CrossZone.FALLBACK
        self.near_only = cross_zone is CrossZone.NEVER
        """Whether no content may come from another zone."""
        self.estimate: Callable[[str], float | None] = lambda peer_id: None
        """Seconds of a round trip to a peer, by its id, that this node has not measured; None if they are unknown."""
        self.crossed = 0
        """Bytes that providers of other zones have sent."""
        self._rates: BoundedDict[tuple[str, int], float] = BoundedDict(_MOST)
        self._received = {name: received.labels(name) for name in (*DISTANCE_NAMES, UNKNOWN)}

    # a hit asks for these several times, and in a ring without places the answer is always the same

    def is_far(self, provider: Provider) -> bool:
        """Whether the provider is in another zone."""
        here, there = self.here.place, provider.place
        return here is not NOWHERE and there is not NOWHERE and here.is_far(there)

    def waits(self, provider: Provider) -> bool:
        """Whether the provider is asked only for want of a near one."""
        return self._fallback and self.is_far(provider)

    def permits(self, provider: Provider) -> bool:
        """Whether the provider may be asked."""
        return not (self.near_only and self.is_far(provider))

    def rank(self, provider: Provider) -> int:
        """The rank of the provider; the least is asked first."""
        here, there = self.here.place, provider.place
        distance = SAME_DATACENTER if here is NOWHERE or there is NOWHERE else here.distance(there)
        rtt = provider.rtt if provider.rtt is not None else self.estimate(provider.peer_id)
        trip = 0 if rtt is None else (rtt >= _MIDDLING_TRIP) + (rtt >= _LONG_TRIP)
        rate = self._rates.get(provider.registry) if self._rates else None
        slowness = 0 if rate is None else (rate < _GOOD_RATE) + (rate < _POOR_RATE)
        return (distance * 4 + trip) * 4 + slowness

    def name(self, provider: Provider) -> str:
        """The distance of the provider for people: rack, zone, datacenter, other or unknown."""
        here, there = self.here.place, provider.place
        if here is NOWHERE or there is NOWHERE or not (here and there):
            return UNKNOWN
        return DISTANCE_NAMES[here.distance(there)]

    def took(self, provider: Provider, count: int, waited: float = 0.0) -> None:
        """Count ``count`` bytes that the provider has sent while this node waited for them for ``waited`` seconds.

        A transfer that hardly waits says nothing of the provider, because its client is the slow side.
        """
        self._received[self.name(provider)].inc(count)
        self.crossed += count if self.is_far(provider) else 0
        if count >= _LEAST_BYTES and waited >= _LEAST_WAIT:
            rate, before = count / waited, self._rates.get(provider.registry)
            self._rates[provider.registry] = rate if before is None else before + _FORGETS * (rate - before)

    def bytes_by_place(self) -> dict[str, int]:
        """Bytes that peers have sent, by their distance."""
        return {name: int(count.value) for name, count in self._received.items()}
