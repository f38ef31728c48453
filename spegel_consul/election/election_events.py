"""The events that go into the election's state machine, and the actions that come out.

They are small frozen messages between ``state_machine`` and ``candidate``.  Each action is answered by one event,
except Destroy, Resign, and a ReadKey that a later one replaced.  ``began`` is the time at which a request was sent.

A new message between the two belongs here.
"""

from __future__ import annotations

from spegel_consul.election.lock_store import LockEntry, LockError
from spegel_consul.lean.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """Take part in the election."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """:attr:`Election.deadline` has passed."""


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Whether this node may lead from now on, as far as it knows by itself."""

    eligible: bool


@dataclass(frozen=True, slots=True)
class KeyRead:
    number: int
    index: int
    entry: LockEntry | None


@dataclass(frozen=True, slots=True)
class SessionCreated:
    session: str
    began: float


@dataclass(frozen=True, slots=True)
class Acquired:
    """The answer to :class:`Acquire`; ``won`` if this session has the lock."""

    won: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    action: Renew
    began: float


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to :class:`Probe`: the servers have a leader."""

    action: Probe


@dataclass(frozen=True, slots=True)
class Failed:
    """The request of ``action`` failed."""

    action: Action
    error: LockError


@dataclass(frozen=True, slots=True)
class Stopped:
    """Leave the election; all requests in flight were abandoned."""


Event = Started | Ticked | Eligibility | KeyRead | SessionCreated | Acquired | Renewed | Probed | Failed | Stopped


@dataclass(frozen=True, slots=True)
class ReadKey:
    """Read the key, and abandon a read in flight; ``index`` 0 asks for an answer at once.

    ``consistent``: only servers that have confirmed their Raft leader and have caught up may answer.
    """

    number: int
    index: int
    wait: float
    consistent: bool = False


@dataclass(frozen=True, slots=True)
class CreateSession:
    ttl: float


@dataclass(frozen=True, slots=True)
class Acquire:
    session: str


@dataclass(frozen=True, slots=True)
class Renew:
    session: str
    within: float


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask whether the servers are available."""

    within: float


@dataclass(frozen=True, slots=True)
class Destroy:
    """End a session that did not get the lock; if the request fails, the session ends by its TTL."""

    session: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Release the lock with a vacant mark, and end the session."""

    session: str


Action = ReadKey | CreateSession | Acquire | Renew | Probe | Destroy | Resign
