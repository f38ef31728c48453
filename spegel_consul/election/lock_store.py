"""``LockStore``: the lock by which a bootstrap peer is elected, as one service keeps it, and the rules of that service.

The state machine has the decisions, and ``Candidate`` carries them out; a store only sends requests.  In each store
there is one lock, held by a session, and a value that its holder writes with it.  What differs between services is said
by ``LockRules``, and not asked for by name.

An error has the class of the reaction that it needs.  A new store is a subclass of ``LockStore``; a new difference
between services is a field of ``LockRules``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol

from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.lean.dataclass import dataclass


class LockError(Exception):
    """The store could not be asked, or refused. ``str()`` is one line for people."""


class NotPermitted(LockError):
    """The token lacks a right. Says nothing about locks or sessions."""


class NoLocks(NotPermitted):
    """The store has no locks, so nobody can lead, whatever its value says."""


class SessionUnknown(LockError):
    """The store does not know the session, if the answer names it; another answer may be a proxy's."""


class SessionEnded(LockError):
    """The session is gone, and its lock with it."""


class TTLRefused(LockError):
    """The TTL is outside the limits of the store."""

    def nearest(self, ttl: float) -> float:
        """The allowed TTL that is nearest to ``ttl``."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class LockRules:
    """What the service of a lock does, and what a request to it costs."""

    ends_early: float
    """Seconds after which the service may end the lock of a node that it believes dead, inf for only by the TTL."""
    try_held: float = math.inf
    """Mean seconds between attempts to acquire a lock whose value names a holder.

    inf: a read shows the session that holds the lock, so it is known to be held, and its owner can release it.
    """
    refusal_costs: bool = False
    """Whether a refused attempt is a write to the servers' log."""
    probes: bool = True
    """Whether the servers can be asked cheaply if they are available. Otherwise only reads and renewals tell."""


class LockEntry(Protocol):
    """A read lock. ``session`` is its holder, None if it is free; the index grows with each change."""

    @property
    def value(self) -> bytes: ...
    @property
    def session(self) -> str | None: ...
    @property
    def modify_index(self) -> int: ...


class LockStore(ABC):
    """The requests of one node. All raise LockError, except :meth:`run` and :meth:`rest`."""

    def __init__(self, settings: ElectionSettings, rules: LockRules) -> None:
        self.settings = settings
        self.rules = rules

    @property
    def alive_until(self) -> float:
        """The time before which no check that the session is bound to fails."""
        return math.inf

    async def run(self) -> None:
        """Do what the store needs while this node takes part, until cancelled."""
        return

    async def rest(self) -> None:
        """Another node leads, or this one has stopped."""
        return

    @abstractmethod
    async def read(self, index: int, wait: float, *, consistent: bool) -> tuple[int, LockEntry | None]:
        """The index and the lock, at once or at a change after ``index``; None if it does not exist."""

    @abstractmethod
    async def create_session(self, me: LeaderRecord, ttl: float) -> tuple[str, float]:
        """A new session of ``me``, and the time at which the request for it was sent."""

    @abstractmethod
    async def acquire(self, session: str, me: LeaderRecord) -> bool:
        """Acquire the lock, and write ``me`` with it. False if it is refused."""

    @abstractmethod
    async def renew(self, session: str, within: float) -> None:
        """Renew the session."""

    async def probe(self, within: float) -> None:
        """Ask whether the servers are available; only if the rules say so."""
        raise NotImplementedError

    @abstractmethod
    async def destroy(self, session: str) -> None:
        """End a session that has not got the lock; if the request fails, the session ends by its TTL."""

    @abstractmethod
    async def resign(self, session: str, me: LeaderRecord) -> None:
        """Write a vacant mark, release the lock, and end the session."""
