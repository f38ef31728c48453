"""Reports of nodes that are at work on a group, and the verdicts of its keeper.

The classes with peer ids in their text form are for the mirror, those with binary ones for the rules of the keeper.

Another thing that nodes report belongs here, what follows from it in ``claims``, its bytes in ``claim_messages``.
"""

from __future__ import annotations

from enum import IntEnum

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import Provider

REPORT_EVERY = 2.0
"""Seconds between two reports of a node in a small group."""

MAX_SOURCES = 3
"""Most sources of one verdict."""

MAX_BEHIND = 16
"""Most lagging followers of one report."""


class Why(IntEnum):
    """The failure of a source, as its follower saw it. SLOW: its bytes flow too slowly; not that none has come yet."""

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
    this node that lag, at most 16. ``near_only``: whether this node follows no source of another zone. ``left``: bytes
    of the group that this node does not have yet; 0 if it does not know. ``declines``: whether this node takes over
    from no slow claimer, because a verdict has said lately that the registry is slow for all.
    """

    lost: str = ""
    why: Why = Why.NONE
    serves: bool = False
    have: int = 0
    working: bool = False
    behind: tuple[str, ...] = ()
    near_only: bool = False
    left: int = 0
    declines: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The keeper's answer: ``sources``, best first, at most 3; the next report is due in ``again`` seconds.

    ``slow_upstream``: whether a takeover of this group did not help, because the upstream was slow for both.
    """

    what: What
    sources: tuple[Provider, ...] = ()
    again: float = REPORT_EVERY
    slow_upstream: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """A :class:`ClaimReport` with binary peer ids.

    ``held`` is the node's source by its last verdict, or its own id if that was "claim".
    """

    lost: bytes = b""
    why: Why = Why.NONE
    serves: bool = False
    have: int = 0
    working: bool = False
    behind: tuple[bytes, ...] = ()
    held: bytes = b""
    near_only: bool = False
    left: int = 0
    declines: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """A :class:`Verdict` with binary peer ids.

    The first of ``sources`` is assigned. The others are the sources of that one, which have at least its content.
    """

    what: What
    sources: tuple[bytes, ...] = ()
    again: float = REPORT_EVERY
    slow_upstream: bool = False
