"""Claims: which node downloads the content of a group from upstream, and which nodes follow it.

A group is the content of one manifest.  Each node that is at work on a group reports to one node of the ring, the
keeper of the group.  The keeper's verdict is "claim" (download from upstream), "follow" (read from these sources while
they download) or "alone" (download from upstream; nobody counts on this node).

A rule about the choice of a source belongs here; a rule about the keeper's place in the ring belongs in the router.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from spegel_consul.peers import Provider

REPORT_EVERY = 2.0
"""Seconds between two reports of a node in a small group."""

LEASE = 30.0
"""Seconds after its last report until an entry ends."""

MAX_SOURCES = 3
"""Most sources of one verdict."""


class Why(IntEnum):
    """The failure of a source, as its follower saw it."""

    NONE = 0
    REFUSED = 1
    CUT = 2
    UNREACHABLE = 3
    WRONG = 4
    SLOW = 5


class What(IntEnum):
    """The kinds of a verdict."""

    CLAIM = 1
    FOLLOW = 2
    ALONE = 3


@dataclass(frozen=True, slots=True)
class ClaimReport:
    """The state of a group at one node; peer ids are in their text form (base58).

    ``lost`` is the source that failed, and ``why``. ``serves``: this node's runtime has an ingest of the asked digest,
    or the store has the blob, so the node may be a claimer or a source. ``have``: bytes of the group's blobs on this
    node, complete or growing. ``working``: the runtime has an unfinished ingest of the group. ``behind``: followers of
    this node that lag, at most 16.
    """

    lost: str = ""
    why: Why = Why.NONE
    serves: bool = False
    have: int = 0
    working: bool = False
    behind: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The keeper's answer: ``sources``, best first, at most 3; the next report is due in ``again`` seconds."""

    what: What
    sources: tuple[Provider, ...] = ()
    again: float = REPORT_EVERY


@dataclass(frozen=True, slots=True)
class Report:
    """A :class:`ClaimReport` with binary peer ids."""

    lost: bytes = b""
    why: Why = Why.NONE
    serves: bool = False
    have: int = 0
    working: bool = False
    behind: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """A :class:`Verdict` with binary peer ids."""

    what: What
    sources: tuple[bytes, ...] = ()
    again: float = REPORT_EVERY


@dataclass(slots=True)
class _Entry:
    """A node at work on a group; ``source`` is None for a claimer."""

    source: bytes | None
    until: float


class Claims:
    """The groups that this node keeps; ``now`` is seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._groups: dict[bytes, dict[bytes, _Entry]] = {}

    def report(self, group: bytes, peer: bytes, report: Report, now: float) -> Decision:
        """The decision for ``peer``, which reports the state of ``group`` on its node."""
        entries = {each: entry for each, entry in self._groups.get(group, {}).items() if entry.until > now}
        self._groups[group] = entries
        mine = entries.get(peer)
        if report.lost and mine is not None and mine.source == report.lost:
            entries.pop(report.lost, None)
        if mine is not None and (mine.source is None or mine.source in entries):
            source = mine.source
        else:
            source = next((each for each in entries if not self._passes(entries, each, peer)), None)
        if source is None and not report.serves:
            return Decision(What.ALONE)
        if report.serves:
            entries[peer] = _Entry(source, now + LEASE)
        return Decision(What.CLAIM) if source is None else Decision(What.FOLLOW, (source,))

    @staticmethod
    def _passes(entries: dict[bytes, _Entry], each: bytes | None, peer: bytes) -> bool:
        """Whether the chain of ``each`` passes ``peer`` or ends at no claimer."""
        while each is not None:
            if each == peer or each not in entries:
                return True
            each = entries[each].source
        return False
