"""What a keeper remembers of one group beside its forest: failures, takeovers, and which of two claimers goes on.

That a claimer lives is shown by its progress, and not by its rate. Only a second download tells a slow claimer from a
slow upstream, and a runtime ends each body that it has begun there. So a node that takes over from a claimer that is
slow, and does not hang, is on trial: it takes one body from upstream and all else from the slow one.

A rule about two claimers of one group belongs here; a rule about a report as a whole belongs in ``claims``.
"""

from __future__ import annotations

import math

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.ring.dht.claim_entry import GRACE, HUNG, KEEPS_UP, Entry
from spegel_consul.ring.dht.claim_forest import Forest

STRIKES, MAX_LOSSES, STRUCK_FOR = 3, 5, 60.0
"""Failures within STRUCK_FOR seconds after which the group, or one follower, is alone."""

NO_TAKEOVER_FOR = 600.0
"""Seconds without a takeover after one that did not help."""

TRIAL = 6.0
"""Seconds in which a node that took over from a slow claimer has to show that it is faster."""


class Group(Forest):
    """A forest and what is remembered of failures."""

    def __init__(self, now: float, chain: int) -> None:
        super().__init__(chain)
        self.born = self.touched = now
        self.strikes: BoundedDict[bytes, tuple[float, bytes]] = BoundedDict(16)  # by claimer: when, by which follower
        self.alone: BoundedDict[bytes, float] = BoundedDict(256)
        self.takeover_from = -math.inf
        self.takeovers: list[float] = []

    def is_struck(self, now: float) -> bool:
        # of as many followers, because one may be mistaken
        return len({follower for at, follower in self.strikes.values() if at > now - STRUCK_FOR}) >= STRIKES

    def fails(self, mine: Entry, now: float) -> bool:
        """Whether a claimer on trial is no faster than the slow one; its trial ends as soon as it is."""
        slow = mine.trial
        if slow is None:
            return False
        # what it follows can't be more than its source has, so the rest comes from upstream
        if not slow.claimer or slow.is_silent(now, HUNG) or mine.have > slow.have + KEEPS_UP:
            mine.trial = None
        elif now - mine.since >= TRIAL and not slow.is_silent(now):
            self.takeover_from = now + NO_TAKEOVER_FOR  # the upstream is slow for both
            return True
        return False

    def must_yield(self, mine: Entry, now: float) -> bool:
        """Whether another claimer makes this one superfluous: of two, the older stays unless it is half as fast."""
        rate = mine.rate()
        for other in self.claimers if mine.trial is None else ():
            if other is mine or other.presumed or not other.working or other.is_silent(now) or not mine.reaches(other):
                continue
            theirs = other.rate()
            if min(now - mine.since, now - other.since) < GRACE or rate is None or theirs is None:
                continue
            older = (other.since, other.peer) < (mine.since, mine.peer)
            if older and rate < 2 * theirs:
                self.takeover_from = now + NO_TAKEOVER_FOR  # the upstream is slow for both
                return True
            if not older and 2 * rate <= theirs and theirs > 0:
                return True
        return False
