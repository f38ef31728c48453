# The second lane of the election: is Consul there, and how long may a lead be trusted?
#
# A node with a session renews it; a node without one asks who leads the servers, which any server answers from
# memory.  Either answer proves that Consul is there, and one that works after others failed tells the first lane
# to abandon its long poll, whose connection may be half dead for a minute.
#
# Few renew, and repeat it fast while the lease lasts.  All others probe, so a failed probe is repeated the later
# the more nodes there are: in a small cluster all are back within a second.
#
# The lease is local arithmetic.  Consul can't end a session by its TTL sooner than one TTL after it *got* a renewal.
# It ends one sooner when gossip declares the node dead, which takes GOSSIP or longer, and then refuses the lock to
# everybody for the lock-delay.  So nobody else leads before the smaller of both has passed since the last successful
# renewal was sent: that long a leader calls itself one (and less, if its beacon's check may have failed).  This is the
# rule "lock-delay of TTL - 5 s or more", solved for the leader's side, so that a short lock-delay costs more renewals
# of one node and no second leader.

"""``Heartbeat``: the session, the lease it gives, and when Consul is asked next."""

from __future__ import annotations

import math
import random

from spegel_consul.consul.api.backoff import Backoff
from spegel_consul.consul.election.election_events import Probe, Renew

GOSSIP = 5.0
"""Least seconds in which agents with Consul's default gossip declare a lost node dead (measured: 6.5)."""
RENEW_AGAIN = 0.8
"""The longest pause in seconds after a renewal that failed."""
PROBE_AGAIN = (0.7, 5.0)
"""The same after a probe: in a small cluster, and in a large one."""


class Heartbeat:
    """One request at a time: a renewal while there is a session, else a probe. All times are of one clock."""

    def __init__(self, ttl: float, lock_delay: float, rng: random.Random) -> None:
        self.ttl = ttl
        self.session: str | None = None
        self.failing = False
        self.lease_end = -math.inf
        self.session_end = -math.inf
        """Not before then Consul ends the session by its TTL."""
        self._lock_delay = lock_delay
        self._rng = rng
        self._next = math.inf
        self._flight: Renew | Probe | None = None
        self._backoff = Backoff(0.1, RENEW_AGAIN, rng)

    @property
    def lease(self) -> float:
        """Seconds that a renewal is good for."""
        return min(self.ttl, self._lock_delay + GOSSIP)

    @property
    def deadline(self) -> float:
        """When :meth:`beat` is due."""
        return math.inf if self._flight is not None else self._next

    def watch(self, now: float) -> None:
        """Begin to probe, unless it has begun."""
        if self.session is None and self._flight is None and self._next == math.inf:
            self._schedule(now)

    def hold(self, session: str, began: float) -> None:
        """There is a session now; ``began`` is when it was asked for."""
        self.session = session
        self.lease_end, self.session_end = began + self.lease, began + self.ttl
        self._start_over(began)

    def drop(self, now: float) -> str | None:
        """There is none any more. What it was."""
        dropped, self.session = self.session, None
        self.lease_end = self.session_end = -math.inf
        if dropped is not None:
            self._start_over(now)
        return dropped

    def beat(self, now: float) -> tuple[Renew | Probe, ...]:
        """The request that is due, if one is."""
        if now < self.deadline:
            return ()
        within = max(min(self.lease, self.ttl) / 3, 1.0)
        self._flight = Probe(within) if self.session is None else Renew(self.session, within)
        return (self._flight,)

    def answered(self, action: Renew | Probe, began: float, now: float) -> bool:
        """``action``, sent at ``began``, has worked. True if others had failed before."""
        if action != self._flight:
            return False
        if isinstance(action, Renew):
            self.lease_end, self.session_end = began + self.lease, began + self.ttl
        recovered = self.failing
        self._start_over(began if isinstance(action, Renew) else now)
        return recovered

    def failed(self, action: Renew | Probe, now: float, spread: float) -> bool:
        """``action`` did not work. False if it was of a session that is no longer held.

        ``spread``: seconds within which the probes of all nodes together are no burden.
        """
        if action != self._flight:
            return False
        self._flight, self.failing = None, True
        least, most = PROBE_AGAIN
        self._backoff.cap = RENEW_AGAIN if isinstance(action, Renew) else min(max(spread, least), most)
        self._next = now + self._backoff.next()
        return True

    def _start_over(self, began: float) -> None:
        self._flight, self.failing = None, False
        self._backoff.reset()
        self._schedule(began)

    def _schedule(self, began: float) -> None:
        half = (self.ttl if self.session is None else self.lease) / 2
        self._next = began + half * self._rng.uniform(0.9, 1.0)
