"""The member table: the peers that this node knows, dead or alive.

Every node knows every other node, so that a lookup is one hop.  Records are found only if this table is nearly
complete, so members are learnt from every source: their own messages, the closer peers in answers, and gossip.

A member is alive until a question to it fails.  From then on it is neither asked nor named as a provider, and it is
probed with a growing back-off.  One answer makes it alive again.  FORGET_AFTER consecutive failures remove it, but not
before the members that have not noticed its death stop to introduce it.  A lost connection is no failure: it only
brings the next probe forward.  Questions that were open at the moment of a failure
add no failure of their own, because one reset ends all of them.

A process that restarts resets its connections and refuses new ones for some milliseconds.  So a member whose only
failure is a reset ``may_return``: it is still named as a provider, after the others, until its first probe fails.  A
member that did not answer in time is not named, because it may hang for long.

Gossip must not revive the dead.  So each report carries its age, the time since any node heard from the member, and a
report older than HEARSAY_AGE does not introduce a member.  If another node heard from a member after it failed to
answer this node, it is probed again.

Gossip must not fill the table either.  One source can introduce only a share of the table.  If the table is full, a
peer that speaks for itself evicts a dead member, or one that was only named, by the source that named most.

A member that restarts may have another registry, for instance at another port.  A report of others tells that of a dead
member.  It changes no address of a living one, because the source may lie: the member itself is asked (``disputes``).

The place of a member is what it said itself, also if that is none. Reports of others count only while it has not, or
may have restarted since, because a restart may change it; one without a place is of a node that does not know it.

The table only decides, and has neither clock nor connections: ``now`` goes in, the members to probe come out.
A rule about what a report, an answer or a failure means for a member belongs here.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from spegel_consul.multiaddrs import Contact
from spegel_consul.peers import PeerInfo
from spegel_consul.places import Place
from spegel_consul.ring.dht.messages import MemberReport, WirePeer
from spegel_consul.ring.dht.placement import REPLICAS, Placement
from spegel_consul.ring.members.member import Member
from spegel_consul.ring.members.timer_heap import TimerHeap

CAPACITY = 4096
"""Most members of a table."""

FULL = (
    f"the ring has {CAPACITY} members or more, and a node knows no more, so nodes may miss each other's copies and "
    "pull from upstream: use several rings (large-clusters.md)"
)
"""What a full table means, for people."""

HEARSAY_AGE = 300.0
"""Seconds; an older report does not introduce a member."""

DOUBT_AGE = 5.0
"""Seconds; a provider that was not heard from for so long is probed when a lookup yields it."""

FORGET_AFTER = 8
"""Consecutive failures after which a member may be forgotten; with the back-off that is some minutes."""

_SHARE = 0.5  # of the table, for members that one source named and that have not spoken themselves

_FIRST_PROBE, _LONGEST_PROBE = 0.1, 45.0  # with jitter 56 s, so a member that hung is known again within a minute
_LEAST_JITTER = 0.75
_SECOND_OPINION = 2.0  # seconds after a failure before a report of others leads to a probe


class Members:
    """The table of at most ``capacity`` members; never contains ``me``."""

    def __init__(self, me: bytes, *, capacity: int = CAPACITY, rng: random.Random | None = None) -> None:
        self._me = me
        self._capacity = capacity
        self._rng = rng or random.Random()
        self._members: dict[bytes, Member] = {}
        self._placement = Placement()
        self._version = 0  # of the placement
        self._moved: set[int] = set()  # positions at which a living member came or went
        self._timers: TimerHeap[Member] = TimerHeap()
        self._infos: tuple[PeerInfo, ...] | None = None
        self.full = False
        """Whether there is no place for one more living member; until a fiftieth of the places is free again."""
        self._named: Counter[bytes] = Counter()  # by source: the members with this ``source``

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, peer: bytes) -> Member | None:
        """The member with this id, dead or alive."""
        return self._members.get(peer)

    def living(self) -> list[Member]:
        """The members that are alive."""
        return [member for member in self._members.values() if member.alive]

    def infos(self) -> tuple[PeerInfo, ...]:
        """The members that are alive, as PeerInfo."""
        if self._infos is None:
            self._infos = tuple(member.info for member in self._members.values() if member.alive)
        return self._infos

    def is_alive(self, peer: bytes) -> bool:
        member = self._members.get(peer)
        return member is not None and member.alive

    def closest(self, target: int, count: int = REPLICAS) -> list[bytes]:
        """The living members nearest to a position, the nearest first."""
        return self._placement.closest(target, count)

    def closest_of(self, target: int) -> Callable[[], list[bytes]]:
        """As :meth:`closest`, to be called again and again, because most calls come before the next change."""
        version, found = -1, list[bytes]()

        def closest() -> list[bytes]:
            nonlocal version, found
            if version != self._version:
                version, found = self._version, self.closest(target)
            return found

        return closest

    def take_changes(self) -> set[tuple[int, int]]:
        """The ranges of positions, each its first and last, for which :meth:`closest` changed since the last call.

        For positions outside them it did not change at any time since then, not even to change back.
        """
        moved, self._moved = self._moved, set()
        return set(map(self._placement.reach, moved))

    def learn(
        self,
        contact: Contact,
        now: float,
        *,
        age: float = 0.0,
        direct: bool = False,
        source: bytes = b"",
        place: Place | None = None,
    ) -> Member | None:
        """A peer was named, by ``source`` or (``direct``) by itself. Returns the member if it is new.

        ``place``: its place as it was told, NOWHERE for none; None if nothing was said of it.

        A member's own addresses replace the known ones. A report of others introduces a member, adds a registry
        that is unknown, or replaces the addresses of a member that is dead (its registry only if another node heard
        from it after it failed); it changes no other address.
        """
        if contact.id == self._me:
            return None
        member = self._members.get(contact.id)
        if member is None:
            if not contact.routers or age > HEARSAY_AGE or not self._admits(None if direct else source):
                return None
            member = self._members[contact.id] = Member(contact, now - age, None if direct else source)
            member.since = now
            member.asked = direct and contact.registry is not None
            self._place(member, place, direct=direct)
            if member.source is not None:
                self._named[member.source] += 1
            self._live(member)
            self._timers.note(member)
            return member
        self._place(member, place, direct=direct)
        if direct:
            self._spoke(member)
            member.asked = member.asked or contact.registry is not None
            if contact.routers:
                self._update(member, contact)
            return None
        if contact.routers and not member.alive and contact.routers != member.routers:
            self._update(member, contact)
            self._probe(member, now)
        elif contact.routers == member.routers and member.has_other_registry(contact):
            is_newer = not member.alive and now - age > member.failed_at
            if is_newer or member.registry is None:
                self._update(member, contact)
        under_way = member.probe_at is None or member.probe_at == math.inf
        if not member.alive and not under_way and now - age > member.failed_at:
            # another node heard from it after it failed to answer this node
            self._probe(member, min(member.probe_at or 0.0, max(now, member.failed_at + _SECOND_OPINION)))
        member.heard = max(member.heard, now - age)
        return None

    def disputes(self, contact: Contact) -> bool:
        """Whether a living member should be asked for its addresses: a report of others names another registry.

        True only once after it was lost, because a source that lies would cause questions without end.
        """
        member = self._members.get(contact.id)
        if member is None or not member.alive or member.asked or not member.has_other_registry(contact):
            return False
        member.asked = True
        return True

    def confirm(self, reports: Iterable[MemberReport], now: float, speaker: bytes) -> list[MemberReport]:
        """Apply the reports of ``speaker`` that only confirm a living member; returns the others, and that of itself.

        This is the fast path of gossip, because most reports change nothing else.
        """
        rest = []
        for report in reports:
            member = self._members.get(report.peer.id)
            place = report.place
            moved = place and member is not None and member.place is not place and member.place != place
            if moved or report.peer.id == speaker or not self.confirms(report.peer, report.age, now):
                rest.append(report)
        return rest

    def confirms(self, wire: WirePeer, age: float, now: float) -> bool:
        """Whether a report, ``age`` seconds old, only confirms a living member; then it is applied."""
        member = self._members.get(wire.id)
        if member is None or not member.alive or member.wire != wire:
            return False
        member.heard = max(member.heard, now - age)
        return True

    def answered(self, peer: bytes, now: float, took: float | None = None) -> bool:
        """``peer`` sent a message, ``took`` seconds after the question. True if it was dead until now."""
        member = self._members.get(peer)
        if member is None:
            return False
        self._spoke(member)
        revived = not member.alive
        member.alive, member.failures = True, 0
        member.heard = member.spoke = now
        self._probe(member, None)
        if took is not None:
            member.rtt += (0.2 if member.timed else 1.0) * (took - member.rtt)
            member.timed = True
        if revived:
            member.since = now
            self._live(member)
        return revived

    def failed(
        self, peer: bytes, now: float, *, asked: float | None = None, replaced: bool = False, reset: bool = False
    ) -> bool:
        """A question to ``peer``, which began at ``asked`` (default: now), failed.

        ``replaced``: another peer has its address now. ``reset``: its connection was reset or refused. True if it was
        alive until now. Forgets it after FORGET_AFTER failures, when no report can introduce it any more.
        """
        member = self._members.get(peer)
        if member is None:
            return False
        died = member.alive
        member.reset = reset and (died or member.reset)
        if not died and not replaced and asked is not None and asked <= member.failed_at:
            return False
        member.alive = member.told_place = member.asked = False
        member.failures += 1
        member.failed_at = now
        wait = min(_LONGEST_PROBE, _FIRST_PROBE * 4 ** min(member.failures - 1, FORGET_AFTER))
        if replaced:
            # keep a tombstone so that gossip from peers that have not noticed yet does not re-add it
            member.failures = FORGET_AFTER if now - member.heard > HEARSAY_AGE else FORGET_AFTER - 1
            wait = HEARSAY_AGE / _LEAST_JITTER
        at = now + wait * self._rng.uniform(_LEAST_JITTER, 1.25)
        self._probe(member, at if wait < 1 else math.ceil(at))  # rounded: one wake-up for many dead members
        if died:
            self._die(member)
        if member.failures >= FORGET_AFTER and now - member.heard > HEARSAY_AGE:
            self._forget(member)
        return died

    def suspect(self, peer: bytes, now: float) -> None:
        """Probe ``peer`` soon: the connection to it was lost."""
        member = self._members.get(peer)
        if member is not None and member.alive:
            member.since, member.told_place, member.asked = now, False, False
            self._probe(member, now + _FIRST_PROBE * self._rng.uniform(0.5, 1.0))

    def doubt(self, peer: bytes, now: float) -> bool:
        """``peer`` is about to be used. True if it was quiet for so long that it is probed now."""
        member = self._members.get(peer)
        if member is None or member.probe_at is not None or now - member.heard < DOUBT_AGE:
            return False
        self._probe(member, now)
        return True

    def put_off(self, peer: bytes, now: float) -> None:
        """A probe of ``peer`` has ended. If that told nothing, because its dial had to wait, another one follows."""
        member = self._members.get(peer)
        if member is not None and member.probe_at == math.inf:
            self._probe(member, now + _LONGEST_PROBE * self._rng.uniform(_LEAST_JITTER, 1.25))

    def due(self, now: float) -> list[Member]:
        """The members to probe now; each is returned once until it answers, fails or is suspected again."""
        due = self._timers.due(now)
        for member in due:
            member.probe_at = math.inf
        return due

    def next_probe(self) -> float:
        """The earliest time at which :meth:`due` is not empty, as far as is known now; infinity if never."""
        return self._timers.next()

    def _probe(self, member: Member, at: float | None) -> None:
        member.probe_at = at
        self._timers.note(member)

    def _admits(self, source: bytes | None) -> bool:
        """Whether ``source`` may introduce one more member (None: it speaks for itself); evicts another if need be."""
        if source is not None and self._named[source] >= self._capacity * _SHARE:
            return False
        if len(self._members) < self._capacity:
            return True
        spare = next((member for member in self._members.values() if not member.alive), None)
        if spare is None and source is None and self._named:
            most, _ = self._named.most_common(1)[0]
            spare = next(member for member in self._members.values() if member.source == most)
        if spare is None:
            return False
        self._forget(spare)
        return True

    def _forget(self, member: Member) -> None:
        self._spoke(member)
        if member.alive:
            self._die(member)
        del self._members[member.id]
        member.probe_at = math.inf

    def _live(self, member: Member) -> None:
        self._version += 1
        self._moved.add(member.position)
        self._placement.add(member.id, member.position)
        self._infos = None
        self.full = self.full or len(self._placement) >= self._capacity

    def _die(self, member: Member) -> None:
        self._version += 1
        self._moved.add(member.position)
        self._placement.discard(member.position)
        self._infos = None
        self.full = self.full and len(self._placement) > self._capacity - max(1, self._capacity // 50)

    @staticmethod
    def _place(member: Member, place: Place | None, *, direct: bool) -> None:
        if place is not None and (direct or (place and not member.told_place)):
            member.place, member.told_place = place, member.told_place or direct

    def _update(self, member: Member, contact: Contact) -> None:
        before = member.info
        member.update(contact)
        if member.info is not before:
            self._infos = None

    def _spoke(self, member: Member) -> None:
        """``member`` no longer counts towards the share of the source that introduced it."""
        if member.source is not None:
            self._named[member.source] -= 1
            if not self._named[member.source]:
                del self._named[member.source]
            member.source = None
