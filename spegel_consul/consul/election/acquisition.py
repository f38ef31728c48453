# A key that became free without a "vacant" mark belonged to a session that ended; the servers refuse everybody for
# the lock-delay, so asking sooner is pure load.  How long nodes spread out depends on how many there are: with one
# in each SPACING the first one asks soon and has the lock before most others wake up, in a crowd of any size.

"""``Acquisition``: when this node asks for a free lock."""

from __future__ import annotations

import math
import random

from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.election.election_view import ElectionSettings
from spegel_consul.consul.election.leader_record import LeaderRecord

SPACING = 0.04
"""Seconds between one node's attempt and the next one's, on average."""
FREE_SPACING = 0.2
"""Least seconds between two reads of a free key: its index may move without it, as often as others write."""
_CROWD_UNKNOWN = 0.3


class Acquisition:
    """One node's turn. ``crowd``: how many nodes take part, 0 for not known. All times are of one clock."""

    def __init__(self, settings: ElectionSettings, rng: random.Random) -> None:
        self.crowd = 0
        self._settings = settings
        self._rng = rng
        self._vacancy: tuple[int, int] | None = None
        self._at = 0.0
        self._denied_until = -math.inf
        self._read_at = -math.inf

    @property
    def at(self) -> float:
        """Not before then this node asks."""
        return max(self._at, self._denied_until)

    @property
    def together(self) -> float:
        """Seconds within which one request of every node is no burden."""
        return SPACING * self.crowd

    def spread(self, most: float = math.inf) -> float:
        """Seconds to wait where all nodes would act at the same moment."""
        return self._rng.uniform(0, min(self._settings.jitter, self.together or _CROWD_UNKNOWN, most))

    def soon(self, answered_in: float) -> float:
        """The few that have come as far as a session spread once more, the further the slower the answers are."""
        return self.spread(max(4 * SPACING, 8 * answered_in)) / 2

    def vacant(self, entry: KVEntry | None, now: float, *, starting: bool) -> None:
        """The key is free; a new vacancy is a new turn.

        Who is ``starting`` doesn't know how the key became free, and finds out by trying.
        """
        vacancy = (entry.modify_index, entry.lock_index) if entry else (0, 0)
        if vacancy != self._vacancy:
            self._vacancy = vacancy
            delay = 0.0 if starting or self._released(entry) else self._settings.lock_delay
            self._at = now + delay + self.spread()

    def taken(self) -> None:
        """Somebody has the lock."""
        self._vacancy = None

    def refused(self, now: float) -> None:
        """Lost the race, or a lock-delay longer than ours: the key itself may not change for a while."""
        self._at = now + self._settings.retry * self._rng.uniform(0.75, 1.25)

    def denied(self, now: float) -> float:
        """The token may not lead. Seconds until it is tried again, because tokens are replaced."""
        wait = self._settings.denied_retry * self._rng.uniform(0.75, 1.25)
        self._denied_until = now + wait
        return wait

    def wait(self, now: float, seconds: float) -> None:
        """Not again for ``seconds``."""
        self._at = now + seconds

    def read(self, now: float) -> None:
        """The free key is read."""
        self._read_at = now

    @property
    def read_again(self) -> float:
        """Not before then the free key is read again."""
        return min(self._read_at + FREE_SPACING, self.at)

    def _released(self, entry: KVEntry | None) -> bool:
        """Whether the lock was given up, so that no lock-delay is running."""
        if entry is None:
            return self._settings.behavior != "delete"
        return LeaderRecord.parse(entry.value) is None
