# The vocabulary between the election's core and its shell: small frozen messages, nothing else.

"""What goes into the election (events) and what comes out (actions)."""

from __future__ import annotations

from dataclasses import dataclass

from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.api.consul_errors import ConsulError

# Events.  ``began`` is when the request was sent.


@dataclass(frozen=True, slots=True)
class Started:
    """Begin."""


@dataclass(frozen=True, slots=True)
class Ticked:
    """:attr:`Election.deadline` has passed."""


@dataclass(frozen=True, slots=True)
class KeyRead:
    number: int
    index: int
    entry: KVEntry | None


@dataclass(frozen=True, slots=True)
class SessionCreated:
    session: str
    began: float


@dataclass(frozen=True, slots=True)
class Acquired:
    """The answer to :class:`Acquire`: True if the servers gave the lock."""

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
    """``action`` did not work."""

    action: Action
    error: ConsulError


@dataclass(frozen=True, slots=True)
class Stopped:
    """End; all requests in flight were abandoned."""


Event = Started | Ticked | KeyRead | SessionCreated | Acquired | Renewed | Probed | Failed | Stopped


# Actions.  Each is answered by one event, except Destroy and Resign, and except a ReadKey that a later one replaced.


@dataclass(frozen=True, slots=True)
class ReadKey:
    """Read the key, abandoning the read in flight if there is one; ``index`` 0: don't wait.

    ``consistent``: only servers that have confirmed who leads them, and have caught up, may answer.
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
    """Ask whether the servers have a leader; NoClusterLeader if not."""

    within: float


@dataclass(frozen=True, slots=True)
class Destroy:
    """End a session that lost the race; if that fails, its TTL does it."""

    session: str


@dataclass(frozen=True, slots=True)
class Resign:
    """Release the key with a vacant mark, then destroy the session. In this order: see lock-delay."""

    session: str


Action = ReadKey | CreateSession | Acquire | Renew | Probe | Destroy | Resign
