"""Claims: which node downloads the content of a group from upstream, and which nodes follow it.

A group is the content of one manifest.  Each node that is at work on a group reports to one node of the ring, the
keeper of the group, again and again.  The keeper's decision is "claim" (download from upstream), "follow" (read from
this source while it downloads) or "alone" (download from upstream; no node counts on this one).

    report -> its complaint: the source is lost (dropped for 60 s), or slow
           -> its view of its own followers: those that lag become bad sources
           -> the decision: a claimer stays, yields to a faster one; a follower stays, moves, or takes over

A node is believed about its own state, about its assigned source and about its assigned followers, and about nothing
else.  Failures end in "alone", which is the download without this module: of a follower that lost MAX_LOSSES sources,
and of the whole group when STRIKES followers each lost a claimer that had got nothing.

In a group of several zones, a node follows a source of its own zone if there is one. So the content crosses into a zone
once, with the first of its nodes. A node that may not follow across zones claims, if it is the first of its zone.

A slow claimer that is not nearly done costs one more copy: a follower takes over, and after a few seconds the claimer
that is not clearly faster becomes a follower.  All nodes of the group are told then, and take over from no slow claimer
of that registry for a while.  A claimer whose reports stay away counts as slow.  So a node that hangs
is left without a complaint of its followers.  A new keeper starts without entries, so reports say which source their
node holds.

A rule about a report belongs here, a rule about the order of sources in ``claim_forest``, a rule about the keeper's
place in the ring in the router.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.places import NOWHERE, Place
from spegel_consul.ring.dht.claim_entry import GRACE, HUNG, KEEPS_UP, Entry
from spegel_consul.ring.dht.claim_forest import CHAIN, STILL, Forest
from spegel_consul.ring.dht.claim_reports import MAX_BEHIND, MAX_SOURCES, REPORT_EVERY, Decision, Report, What, Why

CLAIMER_REPORTS_EVERY = 1.0
"""Seconds between two reports of a claimer, whose rate must be known soon, and of its followers, which take over."""

REPORTS_PER_SECOND = 50.0
"""Reports that a large group sends to its keeper; a node then reports less often, to LONGEST_PAUSE."""

LONGEST_PAUSE = 20.0

LEASE = 30.0
"""Seconds after its last report until an entry ends; longer where reports are rarer."""

STRIKES, MAX_LOSSES, STRUCK_FOR = 3, 5, 60.0
"""Failures within STRUCK_FOR seconds after which the group, or one follower, is alone."""

FAILED_FOR = 60.0
"""Seconds for which a lost source is neither a source nor a claimer."""

TAKEOVER_EVERY, MAX_TAKEOVERS = 60.0, 3
"""Least seconds between two takeovers of one group, unless the claimer hangs; then the most takeovers in that time."""

NO_TAKEOVER_FOR = 600.0
"""Seconds without a takeover after one that did not help."""

SLOW_FOR = 10.0
"""Seconds for which a follower's complaint of slowness counts."""

SETTLE = 10.0
"""Seconds for which the keeper of a new group takes over what reports say of their present sources."""

MAX_GROUPS, MAX_OF_PEER, MAX_OF_GROUP = 20_000, 2_000, 10_000


class _Group(Forest):
    """A forest and what is remembered of failures."""

    def __init__(self, now: float, chain: int) -> None:
        super().__init__(chain)
        self.born = self.touched = now
        self.strikes: BoundedDict[bytes, tuple[float, bytes]] = BoundedDict(16)  # by claimer: when, by which follower
        self.alone: BoundedDict[bytes, float] = BoundedDict(256)
        self.takeover_from = -math.inf
        self.slow_upstream = False
        self.takeovers: list[float] = []

    def is_struck(self, now: float) -> bool:
        # of as many followers, because one may be mistaken
        return len({follower for at, follower in self.strikes.values() if at > now - STRUCK_FOR}) >= STRIKES


class Claims:
    """The groups that this node keeps; ``now`` is seconds of any monotonic clock, ``chain`` that of each forest."""

    def __init__(self, chain: int = CHAIN) -> None:
        self._chain = chain
        self.place_of: Callable[[bytes], Place] = lambda peer: NOWHERE
        """The place of a peer, as far as it is known."""
        self._groups: dict[bytes, _Group] = {}  # in the order of their last reports
        self._held_by: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._groups)

    def __contains__(self, group: bytes) -> bool:
        return group in self._groups

    def report(self, group: bytes, peer: bytes, report: Report, now: float) -> Decision:
        """The decision for ``peer``, which reports the state of ``group`` on its node."""
        self._forget_stale(now)
        found = self._groups.pop(group, None)
        if found is None:
            # a follower may have a source from the keeper before, though its own downloads can't be seen
            if not (report.serves or report.held) or len(self._groups) >= MAX_GROUPS:
                return Decision(What.ALONE)
            found = _Group(now, self._chain)
        self._groups[group] = found
        found.touched = now
        for gone in found.expire(now):
            self._uncount(gone)
        pause = min(LONGEST_PAUSE, max(REPORT_EVERY, len(found.entries) / REPORTS_PER_SECOND))
        mine = self._entry_of(found, peer, now)
        if mine is not None:
            self._note(found, mine, report, pause, now)
            self._decide(found, mine, report, now)
            if mine.claimer or mine.source is not None:
                if mine.source is None or mine.source.claimer:
                    pause = CLAIMER_REPORTS_EVERY
                mine.due = now + pause
                return replace(self._decision(mine, pause), slow_upstream=found.slow_upstream)
            self._drop(found, mine)
        if not (found.entries or found.failed or found.strikes or found.alone):
            del self._groups[group]
        return Decision(What.ALONE, again=pause)

    @staticmethod
    def _decision(mine: Entry, pause: float) -> Decision:
        if mine.claimer:
            return Decision(What.CLAIM, again=pause)
        sources: list[bytes] = []
        source = mine.source
        while source is not None and len(sources) < MAX_SOURCES:
            sources.append(source.peer)
            source = source.source
        return Decision(What.FOLLOW, tuple(sources), pause)

    def _note(self, group: _Group, mine: Entry, report: Report, pause: float, now: float) -> None:
        """Take over what a node says of itself and of its followers."""
        first = mine.source is None and not mine.claimer and now - group.born < SETTLE
        if mine.presumed and report.held != mine.peer:
            group.release(mine)
            first = True
        mine.near_only, mine.declines = report.near_only, report.declines
        group.touch(mine, serves=report.serves or report.working, place=self.place_of(mine.peer))
        mine.until = now + max(LEASE, 2 * pause + SETTLE)
        mine.measure(report.have, report.left, report.working, now)
        for peer in report.behind[:MAX_BEHIND]:
            child = group.entries.get(peer)
            if child is not None and child.source is mine:
                child.lagging_until = now + 2 * pause
        if first and report.held:
            self._inherit(group, mine, report.held, now)

    def _inherit(self, group: _Group, mine: Entry, held: bytes, now: float) -> None:
        """Keep the source that another keeper gave."""
        if held == mine.peer:
            if mine.serves and not group.has_failed(mine.peer, now):
                group.claim(mine, now)
            return
        source = group.entries.get(held)
        if source is None and not group.has_failed(held, now) and len(group.entries) < MAX_OF_GROUP:
            # not of the share of that peer, which has not said anything
            source = group.add(held, now, self.place_of(held))
            source.presumed, source.until, source.due = True, now + SETTLE, now + REPORT_EVERY
            group.claim(source, now)
        if source is not None and group.chain(source, now, avoid=mine) is not None:
            group.follow(mine, source, now)
            mine.moved_at = -math.inf

    def _decide(self, group: _Group, mine: Entry, report: Report, now: float) -> None:
        """Make ``mine`` a claimer or a follower; it stays an orphan if it is to be alone."""
        source = mine.source
        if source is not None and report.lost == source.peer:
            if report.why is Why.SLOW:
                if source.claimer:
                    source.slow_until = now + SLOW_FOR
                elif source.have > report.have + KEEPS_UP:  # otherwise the source waits as well
                    source.lagging_until = max(source.lagging_until, now + 2 * REPORT_EVERY)
            else:
                self._lose(group, mine, source, report, now)
        if group.is_struck(now) or group.alone.get(mine.peer, -math.inf) > now:
            group.release(mine)
            return
        if mine.source is not None and (mine.source.until <= now or mine.source.is_adrift(now)):
            self._drop(group, mine.source)
        if mine.claimer and (not mine.serves or self._must_yield(group, mine, now)):
            group.release(mine)
        if mine.claimer:
            return
        if mine.source is None:
            chosen = group.choose(mine, now)
            if chosen is not None:
                group.follow(mine, chosen[1], now)
            elif mine.serves and not group.has_failed(mine.peer, now):
                group.claim(mine, now)
        elif self._takes_over(group, mine, now):
            group.claim(mine, now)
        else:
            if not (mine.source.working or mine.source.presumed):  # it may be complete, then it reports no more
                mine.source.until = max(mine.source.until, now + LEASE)
            group.move(mine, now)

    def _lose(self, group: _Group, mine: Entry, source: Entry, report: Report, now: float) -> None:
        """``mine`` got nothing more from its source."""
        mine.losses = [*(at for at in mine.losses if at > now - STRUCK_FOR), now]
        if len(mine.losses) >= MAX_LOSSES:
            group.alone[mine.peer] = now + STRUCK_FOR
        gained = report.have > mine.have_at_start or source.have > source.have_at_start
        if source.claimer and not source.presumed and not gained:
            group.strikes[source.peer] = (now, mine.peer)
        others = any(child is not mine for child in source.children)
        if others and source.accused_until <= now:  # the cause may be this follower, if the others are content
            source.accused_until = mine.shuns[source.peer] = now + FAILED_FOR
            group.release(mine)
            return
        group.failed[source.peer] = now + FAILED_FOR
        self._drop(group, source)

    @staticmethod
    def _must_yield(group: _Group, mine: Entry, now: float) -> bool:
        """Whether another claimer makes this one superfluous: of two, the older stays unless it is half as fast."""
        rate = mine.rate()
        for other in group.claimers:
            if other is mine or other.presumed or not other.working or other.is_silent(now) or not mine.reaches(other):
                continue
            theirs = other.rate()
            if min(now - mine.since, now - other.since) < GRACE or rate is None or theirs is None:
                continue
            older = (other.since, other.peer) < (mine.since, mine.peer)
            if older and rate < 2 * theirs:
                group.takeover_from = now + NO_TAKEOVER_FOR
                group.slow_upstream = True
                return True
            if not older and 2 * rate <= theirs and theirs > 0:
                return True
        return False

    @staticmethod
    def _takes_over(group: _Group, mine: Entry, now: float) -> bool:
        """Whether ``mine`` is to download from upstream because its claimer is slow."""
        if not mine.serves or mine.tried:
            return False
        chain = group.chain(mine, now)
        if chain is None or not chain[-1].is_slow(now):
            return False
        slow = chain[-1]
        reached = [each for each in group.claimers if each is not slow and mine.reaches(each)]
        if any(not (each.presumed or each.is_silent(now, HUNG)) for each in reached):
            return False
        group.takeovers = [at for at in group.takeovers if at > now - TAKEOVER_EVERY]
        hangs = slow.is_silent(now, HUNG) or now < slow.accused_until
        if mine.declines and not hangs:
            return False
        if now < group.takeover_from and (not hangs or len(group.takeovers) >= MAX_TAKEOVERS):
            return False
        if slow.is_silent(now, HUNG) and now - mine.grew_at < STILL:  # only its reports don't come through
            return False
        # the first follower that lives has the most content, and the others of its chain stay with it
        nearer = {*chain[1:-1], *slow.children} if mine.source is not slow else ()
        willing = [each for each in nearer if each.serves and not each.tried and (hangs or not each.declines)]
        if any(not each.is_silent(now) for each in willing):
            return False
        if group.has_failed(mine.peer, now):
            return False
        group.takeover_from, mine.tried = max(group.takeover_from, now + TAKEOVER_EVERY), True
        group.takeovers.append(now)
        slow.restart()  # the rates of the two are compared over the same time
        slow.slow_until = now + SLOW_FOR
        return True

    def _entry_of(self, group: _Group, peer: bytes, now: float) -> Entry | None:
        """The entry of a peer that reports, perhaps a new one; None if the group or the share of the peer is full."""
        found = group.entries.get(peer)
        if found is not None and not found.presumed:
            return found
        if self._held_by[peer] >= MAX_OF_PEER or (found is None and len(group.entries) >= MAX_OF_GROUP):
            return None
        self._held_by[peer] += 1
        return found or group.add(peer, now, self.place_of(peer))

    def _drop(self, group: _Group, entry: Entry) -> None:
        group.remove(entry)
        self._uncount(entry)

    def _uncount(self, entry: Entry) -> None:
        if entry.presumed:
            return
        self._held_by[entry.peer] -= 1
        if self._held_by[entry.peer] <= 0:
            del self._held_by[entry.peer]

    def _forget_stale(self, now: float) -> None:
        """Forget the groups from which no report came for long."""
        before = now - max(STRUCK_FOR, FAILED_FOR)
        for group in list(takewhile(lambda each: self._groups[each].touched <= before, self._groups)):
            for entry in self._groups.pop(group).entries.values():
                self._uncount(entry)
