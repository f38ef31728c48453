"""The claim of this node for one group: the keeper's last verdict, and what follows from it.

The node reports to the keeper of the group: at once when a request first needs the group or a source fails, and then
every few seconds while the node is at work on it. The verdict of the last report counts for the whole group. So all
transfers leave a source together, and a node never waits for one source with one layer and for another with the next.

A source that failed is reported once, whatever number of transfers it failed for. Until the answer is there, requests
wait, because the answer to an earlier report may still name that source. A request waits for a limited time. If a
keeper misses it, the requests of the next seconds do not wait at all, and the node goes upstream as if there were no
keeper. It does so as well after several sources failed, or two that gave no sign of life, whatever the keeper says,
because each costs some seconds.

This object has no I/O and no clock. A rule about the meaning of a verdict, or about the time of a report, belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.following.group_history import MOVED, NO_KEEPER, TAKEOVER, UPSTREAM, GroupHistory
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict, What, Why
from spegel_consul.ring.dht.claims import MAX_LOSSES, STRUCK_FOR

CLAIM_WITHIN = 2.0
"""Seconds that a request waits for a verdict."""

SKIPPED = 10.0
"""Seconds in which no request waits for a keeper that has missed the limit."""

LINGER = 10.0
"""Seconds without work or requests after which a claim ends."""

STANDSTILL = 60.0
"""Seconds without growth after which the downloads of a group do not count as work."""

RECENTLY = 5.0
"""Seconds after the last body of a source in which the group counts as followed: a runtime begins the next one soon."""

LOST_FOR = 60.0
"""Seconds in which a source that failed does not stand in for the first one of a verdict, if that can't be asked."""

MAX_SILENT = 2
"""Sources without a sign of life within STRUCK_FOR seconds after which the node goes on alone."""

_LEAST_AGAIN, _MOST_AGAIN = 0.5, 20.0  # seconds between two reports, whatever a keeper asks for
_APART = 0.1  # seconds between two reports, so that many failures at once are few reports
_RECENT = 0.5  # seconds for which a verdict counts that nobody works by
_MOST_ASKED = 256
_MOST_LOST = 64
_MOST_BAD = 3  # verdicts in a row without a usable source that are reported at once

Usable = Callable[[Provider], bool]


@dataclass(frozen=True, slots=True)
class Work:
    """What the node has of a group: see :class:`spegel_consul.ring.dht.claim_reports.ClaimReport`."""

    serves: bool = False
    have: int = 0
    working: bool = False
    left: int = 0


class Follow:
    """One request that follows ``source``: a question, and then a body. It must be closed."""

    def __init__(self, claim: GroupClaim, source: Provider) -> None:
        self._claim = claim
        self.source = source
        self.streams = False
        """Whether the body has begun."""
        self._leave: Callable[[], None] = lambda: None
        self._left = False
        claim.follows.add(self)

    @property
    def over(self) -> bool:
        """Whether the source failed, or is to be left."""
        return self._left or self._claim.pending

    @property
    def has_siblings(self) -> bool:
        """Whether the source sends other bodies of the group to this node."""
        return any(each.streams and each.source == self.source for each in self._claim.follows)

    def on_leave(self, leave: Callable[[], None]) -> None:
        """Call ``leave()`` when the request is to leave the source; at once if that is so already."""
        self._leave = leave
        if self._left:
            leave()

    def leave(self) -> None:
        """Make the request leave its source."""
        self._left = True
        self._leave()

    def lost(self, why: Why, *, silent: bool = False) -> None:
        """Report that the source failed; ``silent``: that it gave no sign of life."""
        self._claim.lose(self.source, why, silent=silent)

    def close(self, received: int = 0) -> None:
        """End; ``received``: the number of bytes of the body that came from the source."""
        if self in self._claim.follows:
            self._claim.follows.remove(self)
            if self.streams or received:
                self._claim.followed()
            self._claim.took(received)


class GroupClaim:
    """The claim for ``group``.

    ``usable``: whether a provider may be asked; ``now``: reads the caller's clock, in seconds; ``on_due``: called when
    a report is due earlier than :attr:`due` was; ``on_failure`` and ``on_received``: count failures and bytes.
    """

    def __init__(
        self,
        group: str,
        usable: Usable,
        now: Callable[[], float],
        on_due: Callable[[], None],
        on_failure: Callable[[Why], None] = lambda why: None,
        on_received: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.group = group
        self.asked: BoundedDict[str, None] = BoundedDict(_MOST_ASKED)
        """Digests that requests have asked for."""
        self.follows: set[Follow] = set()
        self.source: Provider | None = None
        """The node to follow now."""
        self.what: What | None = None
        """The last verdict; None before the first one."""
        self.waiting = 0
        """Number of requests that use the claim."""
        self.pending = True
        """Whether a report is due at once, or on its way, whose answer requests wait for."""
        self._usable = usable
        self._now = now
        self._on_due = on_due
        self._on_failure = on_failure
        self._on_received = on_received
        self._lost: tuple[Provider, Why] | None = None
        self._reported_lost: tuple[Provider, Why] | None = None
        self._lost_at: BoundedDict[str, float] = BoundedDict(_MOST_LOST)  # by peer id
        self._losses: list[float] = []
        self._silent: list[float] = []
        self._alone_until = -math.inf
        self._bad = 0
        self._again = 0.0
        self._work = Work()
        self._reported_at = self._answered_at = -math.inf
        self._skipped_until = -math.inf
        self._active_at = now()
        self._followed_at = -math.inf
        self.history = GroupHistory(self._active_at)

    # What people see

    @property
    def role(self) -> str:
        """``claimer``, ``follower`` or ``alone``; "" before the first verdict."""
        if self.what is What.CLAIM:
            return "claimer"
        if self.what is What.FOLLOW and self.source is not None:
            return "follower"
        return "alone" if self.what is not None else ""

    @property
    def have(self) -> int:
        """Number of bytes of the group that this node had at the last report."""
        return self._work.have

    @property
    def working(self) -> bool:
        """Whether the node's runtime was downloading content of the group at the last report."""
        return self._work.working

    @property
    def age(self) -> float:
        """Seconds since the node began to work on the group."""
        return self._now() - self.history.began

    # Requests

    def ask(self, digest: str) -> None:
        """A request needs ``digest``. If the last verdict does not answer it, a report is due."""
        now = self._now()
        self._active_at = now
        self.asked[digest] = None
        age = now - self._answered_at
        if self.pending or now < self._skipped_until:
            return
        if self.what is What.FOLLOW and self.source is not None:
            outdated = age > 2 * self._again + CLAIM_WITHIN
        else:
            # a node that works goes on; one that has finished or failed may have to follow now
            outdated = age > (self._again if self.what is What.CLAIM and self._work.working else _RECENT)
        if outdated or self.what is What.ALONE:
            self._pend()

    @property
    def answered(self) -> bool:
        """Whether a request need not wait: a verdict is there, or the keeper is skipped or not believed."""
        return not self.pending or self._now() < max(self._skipped_until, self._alone_until)

    @property
    def to_follow(self) -> Provider | None:
        """The source for a request that has waited; None: go upstream."""
        return self.source if not self.pending else None

    @property
    def is_following(self) -> bool:
        """Whether there is a source, and bodies of the group come from sources now or did a moment ago."""
        if self.what is not What.FOLLOW or self.to_follow is None:
            return False
        return self._now() - self._followed_at <= RECENTLY or any(each.streams for each in self.follows)

    def followed(self) -> None:
        """A body that came from a source has ended."""
        self._followed_at = self._now()

    def missed(self) -> None:
        """A request has waited for :data:`CLAIM_WITHIN` in vain."""
        self._skipped_until = self._now() + SKIPPED

    def lose(self, source: Provider, why: Why, *, silent: bool = False) -> None:
        """Report that ``source`` failed, unless it is no longer the source or was reported already.

        ``silent``: it gave no sign of life, which took some seconds to notice.
        """
        self._active_at = self._now()
        if source != self.source or self._lost is not None:
            return
        self._on_failure(why)
        self._lost = source, why
        self._lost_at[source.peer_id] = self._active_at
        self._losses = self._with_this(self._losses)
        if silent:
            self._silent = self._with_this(self._silent)
        if len(self._losses) >= MAX_LOSSES or len(self._silent) >= MAX_SILENT:
            self._alone_until = self._active_at + STRUCK_FOR
        self.history.leave(source, why.name.lower())
        self._skipped_until = -math.inf
        self._pend()

    def _with_this(self, before: list[float]) -> list[float]:
        """Return the times of ``before`` that still count, and the present one."""
        return [*(at for at in before if at > self._active_at - STRUCK_FOR), self._active_at]

    def took(self, count: int) -> None:
        """A body from a source has ended after ``count`` bytes."""
        self._active_at = self._now()
        self.history.took(count, self._active_at)
        self._on_received(count)

    def _pend(self) -> None:
        self.pending = True
        self._on_due()

    # Reports

    @property
    def due(self) -> float:
        """The time of the next report."""
        return self._reported_at + (_APART if self.pending else max(self._again, _APART))

    @property
    def ended(self) -> bool:
        """Whether no report is due any more, because nothing of the group is under way."""
        now = self._now()
        if self.pending or self.follows or self.waiting or now < max(self._skipped_until, self._alone_until):
            return False
        if self._work.working:  # a runtime that was stopped may leave a download as it is, for a later pull
            return now >= self._active_at + STANDSTILL
        return self.what is What.ALONE or now >= self._active_at + LINGER

    def report(self, work: Work, behind: tuple[str, ...]) -> ClaimReport:
        """Return the report that is due."""
        self._reported_at = self._now()
        if work.have != self._work.have:
            self._active_at = self._reported_at
        self._work = work
        self._reported_lost, self._lost = self._lost, None
        source, why = self._reported_lost or (None, Why.NONE)
        peer_id = source.peer_id if source is not None else ""
        return ClaimReport(peer_id, why, work.serves, work.have, work.working, behind, left=work.left)

    def answer(self, verdict: Verdict) -> None:
        """The keeper has answered the last report. Transfers of another source than the new one leave it."""
        now = self._now()
        self._answered_at, self._skipped_until = now, -math.inf
        self._again = min(max(verdict.again, _LEAST_AGAIN), _MOST_AGAIN)
        if self._lost is not None:
            return  # the verdict is older than this failure
        if verdict.what is What.FOLLOW and now < self._alone_until:  # an honest keeper says the same
            verdict = Verdict(What.ALONE, again=verdict.again)
        self.what = verdict.what
        named = verdict.sources if verdict.what is What.FOLLOW else ()
        source = self._first_usable(named)
        self.pending = False
        if source is not None or not named:
            self._bad = 0
        elif self._bad < _MOST_BAD:
            self._bad += 1
            self._on_failure(Why.UNREACHABLE)
            self._lost = named[0], Why.UNREACHABLE
            self._pend()
        self._change(source, {What.CLAIM: TAKEOVER, What.ALONE: UPSTREAM}.get(verdict.what, MOVED))

    def _first_usable(self, named: Sequence[Provider]) -> Provider | None:
        """Return the source to follow. The keeper has assigned the first one, and believes losses of that one only."""
        since = self._now() - LOST_FOR
        for each in named:
            lost = self._lost_at.get(each.peer_id, -math.inf) > since
            if self._usable(each) and (each is named[0] or not lost):
                return each
        return None

    def _change(self, source: Provider | None, why: str) -> None:
        before, self.source = self.source, source
        if before is not None and (source is None or source.registry != before.registry):
            lost = self._lost or self._reported_lost
            if lost is None or lost[0] != before:  # otherwise the reason of the failure was noted
                self.history.leave(before, why)
        if source is None and why != MOVED:
            self.history.end(why)
        for follow in [each for each in self.follows if source is None or each.source.registry != source.registry]:
            follow.leave()

    def unanswered(self) -> None:
        """No keeper has answered the last report. Transfers go on with the source that they have, unless it failed."""
        now = self._now()
        self.pending = False
        self._again = max(self._again, CLAIM_WITHIN)
        self._skipped_until = max(self._skipped_until, now + CLAIM_WITHIN)
        self._lost = self._lost or self._reported_lost
        if self.what is None:
            self.what, self._answered_at = What.ALONE, now
        if self._lost is not None:
            self._change(None, NO_KEEPER)
