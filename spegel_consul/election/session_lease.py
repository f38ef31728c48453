"""``Heartbeat``: the session, the lease that it gives, and the time of the next request about it.

It is the heartbeat lane of ``state_machine``.  A node with a session renews it.  A node without a session probes
whether the servers are available, if the store has a cheap question for that.  Either answer proves that they are.  If
it comes after a failure, the main lane abandons its long poll, whose connection may be half dead for a minute.

Few nodes renew, and they repeat a failed renewal fast while the lease lasts.  All others probe.  So the pause after a
failed probe grows with the number of nodes; in a small cluster all are back within a second.

The lease is local arithmetic.  No store ends a session by its TTL sooner than one TTL after it got a renewal.  Consul
ends a session sooner if gossip declares the node dead, which takes at least ``ends_early``, and then refuses the lock
to every node for the lock-delay.  So no other node leads before the smaller of both times has passed since the last
successful renewal was sent.  For that time a leader stays leader, or less if its check of ``spegel-leader`` may have
failed.  This is the rule "lock-delay of TTL - 5 s or more", solved for the leader's side: a short lock-delay costs more
renewals of one node, and no second leader.

A new rule about the lease, or about the time of a renewal or a probe, belongs here.
"""

from __future__ import annotations

import math
import random

from spegel_consul.backoff import Backoff
from spegel_consul.election.election_events import Probe, Renew
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.lock_store import LockRules

RENEW_AGAIN = 0.8
"""The longest pause in seconds after a failed renewal."""
PROBE_AGAIN = (0.7, 5.0)
"""The longest pause after a failed probe, in a small cluster and in a large one."""


class Heartbeat:
    """Sends one request at a time: a renewal while there is a session, else a probe. One clock for all times."""

    def __init__(self, settings: ElectionSettings, rules: LockRules, rng: random.Random) -> None:
        self.ttl = settings.ttl
        self.session: str | None = None
        self.failing = False
        self.lease_end = -math.inf
        self.session_end = -math.inf
        """The servers do not end the session by its TTL before this time."""
        self._ends_early, self._probes = settings.lock_delay + rules.ends_early, rules.probes
        self._rng = rng
        self._next = math.inf
        self._in_flight: Renew | Probe | None = None
        self._backoff = Backoff(0.1, RENEW_AGAIN, rng)

    @property
    def lease(self) -> float:
        """Seconds of leadership per renewal."""
        return min(self.ttl, self._ends_early)

    @property
    def deadline(self) -> float:
        """The time at which :meth:`beat` is due."""
        return math.inf if self._in_flight is not None else self._next

    def watch(self, now: float) -> None:
        """Begin to probe, unless probes or renewals have begun."""
        if self.session is None and self._in_flight is None and self._next == math.inf:
            self._schedule(now)

    def hold(self, session: str, began: float) -> None:
        """Renew ``session`` from now on; ``began`` is the time at which its creation was sent."""
        self.session = session
        self.lease_end, self.session_end = began + self.lease, began + self.ttl
        self._start_over(began)

    def drop(self, now: float) -> str | None:
        """Give up the session, and probe from now on. Returns the session, or None if there was none."""
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
        self._in_flight = Probe(within) if self.session is None else Renew(self.session, within)
        return (self._in_flight,)

    def answered(self, action: Renew | Probe, began: float, now: float) -> bool:
        """``action``, sent at ``began``, succeeded. True if requests before it had failed."""
        if action != self._in_flight:
            return False
        if isinstance(action, Renew):
            self.lease_end, self.session_end = began + self.lease, began + self.ttl
        recovered = self.failing
        self._start_over(began if isinstance(action, Renew) else now)
        return recovered

    def failed(self, action: Renew | Probe, now: float, spread: float) -> bool:
        """``action`` failed. False if it belongs to a session that was given up.

        ``spread``: seconds over which one probe of each node is a small load.
        """
        if action != self._in_flight:
            return False
        self._in_flight, self.failing = None, True
        least, most = PROBE_AGAIN
        self._backoff.cap = RENEW_AGAIN if isinstance(action, Renew) else min(max(spread, least), most)
        self._next = now + self._backoff.next()
        return True

    def _start_over(self, began: float) -> None:
        self._in_flight, self.failing = None, False
        self._backoff.reset()
        self._schedule(began)

    def _schedule(self, began: float) -> None:
        if self.session is None and not self._probes:
            self._next = math.inf
            return
        half = (self.ttl if self.session is None else self.lease) / 2
        self._next = began + half * self._rng.uniform(0.9, 1.0)
