"""``Acquisition``: the time at which this node tries to acquire a free lock.

A key that became free without a "vacant" mark belonged to a session that ended.  Then the servers refuse every attempt
for the lock-delay, so an earlier attempt is only load.

The time over which nodes spread their attempts grows with their number.  With one node per SPACING the first node tries
soon, and has the lock before most others wake up, in a cluster of any size.

A store that does not show who holds the lock keeps the value of a holder that died.  So a lock that seems to be held is
tried too, seldom, because each attempt may cost the servers a write.

A new rule about the time of an attempt belongs here.
"""

from __future__ import annotations

import math
import random

from spegel_consul.backoff import Backoff
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import LockEntry, LockRules

SPACING = 0.04
"""Mean seconds between the attempts of two nodes."""
FREE_SPACING = 0.2
"""Least seconds between two reads of a free key, because its index may move with each write to another key."""
_SIZE_UNKNOWN = 0.3


class Acquisition:
    """The attempts of one node. ``cluster_size``: number of nodes in the election, 0 for unknown."""

    def __init__(self, settings: ElectionSettings, rules: LockRules, rng: random.Random) -> None:
        self.cluster_size = 0
        self.eligible = True
        """Whether this node may lead; otherwise there is no next attempt."""
        self._settings, self._rules = settings, rules
        self._rng = rng
        self._vacancy: int | None = None
        self._holder: str | None = None
        self._refusals = Backoff(1.0, 30.0, rng)
        self._at = 0.0
        self._held_at = math.inf
        self._denied_until = -math.inf
        self._read_at = -math.inf

    @property
    def at(self) -> float:
        """The time of the next attempt; infinity if there is none."""
        return max(self._at, self._denied_until) if self.eligible else math.inf

    @property
    def spread_time(self) -> float:
        """Seconds over which one request of each node is a small load."""
        return SPACING * self.cluster_size

    def spread(self, most: float = math.inf) -> float:
        """Random seconds to wait before a request that all nodes would send at the same moment."""
        return self._rng.uniform(0, min(self._settings.jitter, self.spread_time or _SIZE_UNKNOWN, most))

    def spread_again(self, answered_in: float) -> float:
        """The same for the few nodes that have made a session; it grows with the time that an answer takes."""
        return self.spread(max(4 * SPACING, 8 * answered_in)) / 2

    def vacant(self, entry: LockEntry | None, now: float, *, starting: bool) -> None:
        """The key is free; set the time of the attempt if it is another vacancy than before.

        A node that is ``starting`` does not know how the key became free, so it does not wait for the lock-delay.
        """
        self._holder = None
        vacancy = entry.modify_index if entry else 0
        if vacancy != self._vacancy:
            self._vacancy = vacancy
            delay = 0.0 if starting or self._released(entry) else self._settings.lock_delay
            self._at = now + delay + self.spread()

    def taken(self) -> None:
        """This node has the lock."""
        self._vacancy = self._holder = None
        self._refusals.reset()

    def held(self, holder: str, now: float) -> float:
        """The value names ``holder``, another node's session. Returns the time of the next attempt, or infinity."""
        if holder != self._holder:
            self.taken()
            self._holder = holder
            every = self._rules.try_held
            self._held_at = now + every * self._rng.uniform(0.5, 1.5) if every < math.inf else math.inf
        return max(self._held_at, self._denied_until) if self.eligible else math.inf

    def refused(self, now: float) -> None:
        """The attempt failed: another node was faster, or the lock-delay is longer than in the settings."""
        self._holder = None
        if self._rules.refusal_costs:
            self._at = now + self._refusals.next()
        else:
            self._at = now + self._settings.retry * self._rng.uniform(0.75, 1.25)

    def failed(self) -> None:
        """The attempt has no answer, or another one; a held lock is tried again as if it had just been seen."""
        self._holder = None

    def denied(self, now: float) -> float:
        """The token may not lead. Returns the seconds until the next attempt, because tokens are replaced."""
        self._holder = None
        wait = self._settings.denied_retry * self._rng.uniform(0.75, 1.25)
        self._denied_until = now + wait
        return wait

    def wait(self, now: float, seconds: float) -> None:
        """Make no attempt for ``seconds``."""
        self._at = now + seconds

    def read(self, now: float) -> None:
        """The free key is read at ``now``."""
        self._read_at = now

    @property
    def read_again(self) -> float:
        """The time of the next read of the free key."""
        return min(self._read_at + FREE_SPACING, self.at)

    def _released(self, entry: LockEntry | None) -> bool:
        """Whether the lock was released, so that there is no lock-delay."""
        if entry is None:
            return self._settings.behavior != "delete"
        return LeaderRecord.parse(entry.value) is None
