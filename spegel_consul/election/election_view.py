"""The view of an election, and its settings: the types between the election and its users.

A new fact about the election that other packages need belongs into ``View``.  A new setting belongs into
``ElectionSettings``, with its check.
"""

from __future__ import annotations

import enum

from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.lean.dataclass import dataclass


class State(enum.Enum):
    """The role of this node. ``SUSPENDED``: no answer from the store for too long; the last leader stays known."""

    STARTING = "starting"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    SUSPENDED = "suspended"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class View:
    """A view of the election.

    ``leader`` is the last known leader, also while no node holds the lock; None before the first one, and while the
    value of the key has no record. ``epoch`` is the key's ModifyIndex, which grows with each leader. ``session`` holds
    the lock. ``fresh`` is False while the store does not answer.
    """

    state: State = State.STARTING
    leader: LeaderRecord | None = None
    epoch: int = 0
    session: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """The lock; times in seconds. All nodes of a cluster need the same ``key``, ``lock_delay`` and ``behavior``."""

    key: str = "spegel/leader"
    ttl: float = 15.0
    lock_delay: float = 0.5
    """Time for which the lock of a session that ended is refused; the leader's renewals depend on it too."""
    behavior: str = "release"
    wait: float = 60.0
    jitter: float = 4.0
    """The longest time over which nodes spread their attempts."""
    retry: float = 1.0
    denied_retry: float = 20.0
    """Time between two attempts of a node whose token may not lead."""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not self.key or self.key.startswith("/") or self.key.endswith("/"):
            raise ValueError(f"leader key {self.key!r}: must not be empty, nor begin or end with a slash")
        if not 1 <= self.ttl <= 86400:
            raise ValueError(f"session TTL {self.ttl:g} s: must be 10 s (or the servers' session_ttl_min) to 24 h")
        if not 0 <= self.lock_delay <= 60:
            raise ValueError(f"lock-delay {self.lock_delay:g} s: must be 0 to 60 s")
        if self.behavior not in ("release", "delete"):
            raise ValueError(f"session behavior {self.behavior!r}: must be release or delete")
        if not 1 <= self.wait <= 600:
            raise ValueError(f"wait {self.wait:g} s: must be 1 to 600 s")
        if self.jitter < 0 or self.retry <= 0 or self.denied_retry <= 0:
            raise ValueError("jitter must not be negative, retry and denied_retry must be above zero")
