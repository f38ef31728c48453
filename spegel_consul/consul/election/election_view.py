"""What is known of an election, and how its lock is held: the words between the election and everybody else."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from spegel_consul.consul.election.leader_record import LeaderRecord


class State(enum.Enum):
    """What this node is. ``SUSPENDED``: Consul was not heard for too long; the last leader stays known."""

    STARTING = "starting"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"
    SUSPENDED = "suspended"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the election now.

    ``leader`` is the last one known, also while nobody holds the key; None before the first and while the
    holder's value can't be read. ``epoch`` is the key's ModifyIndex, which grows with each leader. ``session``
    holds the lock. ``fresh`` is False while Consul can't be asked.
    """

    state: State = State.STARTING
    leader: LeaderRecord | None = None
    epoch: int = 0
    session: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """One lock. Times in seconds; all nodes of a cluster must use the same key, ``lock_delay`` and ``behavior``."""

    key: str = "spegel/leader"
    ttl: float = 15.0
    lock_delay: float = 0.5
    """How long the lock of a session that ended stays refused; also sets how often the leader renews."""
    behavior: str = "release"
    wait: float = 60.0
    jitter: float = 4.0
    """The longest time over which nodes spread their attempts."""
    retry: float = 1.0
    denied_retry: float = 20.0
    """How long a node whose token may not lead waits before it tries again."""

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
