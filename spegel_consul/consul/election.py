# Who leads?  The decisions, without I/O and without a clock.
#
# The elected node is a rendezvous, nothing more: the ring is joined through it, and it owns nothing.  So a wrong
# answer for a few seconds is harmless, a flapping one is not, and losing Consul must change nothing.
#
# One lock on one key, held by a session.  Sessions are lazy: a follower has none, because each session costs
# the servers a renewal every TTL/2.  A session is made when the key is free and this node's jitter has elapsed,
# and destroyed if another node was faster.
#
#                 ┌──────────── key held by another ───────────┐
#     STARTING ───┤                                            ▼
#                 └─ key free ─▶ CANDIDATE ──acquired, read──▶ LEADER     FOLLOWER ── key free ─▶ CANDIDATE
#                                                               │            │
#                       nothing heard for a TTL ────────────────┴─ SUSPENDED ┘  ── heard again ─▶ as read
#
# Two lanes run at once, each with at most one request in flight:
#
#   main     read the key (blocking) → when free: create a session → acquire → read again, to confirm.
#            An "acquire" that timed out may have worked and one that worked may already be void, so the read is
#            the only way to LEADER.  The jitter is itself a blocking read: the winner wakes the losers.
#   renewal  every TTL/2, and with short back-off after a failure, until Consul says that the session is gone.
#
# The lease is local arithmetic: Consul can't expire a session sooner than one TTL after it *got* a renewal, so
# until (start of the last successful renewal + TTL) nobody else can have been given the lock by expiry.  A renewal
# that works after others failed abandons the read in flight, whose connection may be half dead for a minute.
#
# A key that became free without a "vacant" mark belonged to a session that ended; the servers refuse everybody for
# the lock-delay, so asking sooner is pure load.

"""The election's state machine: events and the time go in, actions come out."""

from __future__ import annotations

import enum
import math
import random
from dataclasses import dataclass, replace
from typing import Any

from spegel_consul.consul.client import KVEntry
from spegel_consul.consul.errors import (
    CheckNotPassing,
    ConsulError,
    InvalidSession,
    InvalidSessionTTL,
    NotFound,
)
from spegel_consul.consul.events import (
    Acquire,
    Acquired,
    Action,
    CreateSession,
    Destroy,
    Event,
    Failed,
    KeyRead,
    ReadKey,
    Renew,
    Renewed,
    Resign,
    SessionCreated,
    Started,
    Stopped,
    Ticked,
)
from spegel_consul.consul.pace import Backoff, BlockingIndex
from spegel_consul.consul.record import LeaderRecord

SAFETY = 0.5
"""Seconds before its lease ends that a leader stops calling itself one."""
_RELEASED_JITTER = 0.5
_CHECK_REFUSALS = 6


class State(enum.Enum):
    """What this node is. ``SUSPENDED``: nothing was heard of Consul for a TTL; the last leader stays known."""

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
    """One lock. Times in seconds; all nodes of a cluster must use the same key and ``lock_delay``."""

    key: str = "spegel/leader"
    ttl: float = 15.0
    lock_delay: float = 10.0
    """Keep it at ``ttl`` - 5 or more: a lost node's lock may otherwise move before that node notices."""
    behavior: str = "release"
    wait: float = 60.0
    jitter: float = 1.0
    retry: float = 1.0
    service_checks: tuple[str, ...] = ()
    """Ids of this node's own checks that end the session at once when they turn critical or are removed.

    So a killed process needs no TTL to be noticed. Stop the candidate before its services are deregistered, or
    the hand-over pays the lock-delay.
    """

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
        if self.jitter < 0 or self.retry <= 0:
            raise ValueError("jitter must not be negative, retry must be above zero")


class Election:
    """One node's part in the election. ``me`` is what others learn if it wins."""

    def __init__(self, settings: ElectionSettings, me: LeaderRecord, rng: random.Random) -> None:
        self.settings = settings
        self.me = me
        self.view = View()
        self._rng = rng
        self._ttl = settings.ttl
        self._problems: dict[type[Action], str] = {}
        # main lane: exactly one of a read, another request, or a pause is going on
        self._reads = 0
        self._reading = False
        self._resume_at = math.inf
        self._index = BlockingIndex()
        self._backoff = Backoff(0.25, 10.0, rng)
        self._silent_at = math.inf  # without an answer until then we are SUSPENDED
        self._vacancy: tuple[int, int] | None = None
        self._try_at = 0.0
        self._check_refusals = 0
        # renewal lane
        self._session: str | None = None
        self._lease_end = -math.inf
        self._renew_at = math.inf
        self._renewing = False
        self._renewal_failed = False
        self._renew_backoff = Backoff(0.1, max(settings.ttl / 8, 0.2), rng)

    @property
    def problem(self) -> str | None:
        """What does not work at the moment, in one line for people; None when all is well."""
        return next(iter(self._problems.values()), None)

    @property
    def deadline(self) -> float:
        """When Ticked is due."""
        return min(
            self._resume_at,
            self._silent_at,
            math.inf if self._session is None or self._renewing else self._renew_at,
            self._lease_end - SAFETY if self.view.state is State.LEADER else math.inf,
        )

    def handle(self, event: Event, now: float) -> tuple[Action, ...]:
        """Take in one event; what to do about it, in order."""
        if self.view.state is State.STOPPED:
            return ()
        match event:
            case Started():
                return self._read()
            case Ticked():
                return self._tick(now)
            case KeyRead():
                return self._key_read(event, now) if event.number == self._reads else ()
            case SessionCreated(session, began):
                self._solved(CreateSession)
                self._check_refusals = 0
                self._session, self._lease_end = session, began + self._ttl
                self._renewing = self._renewal_failed = False
                self._schedule_renewal(began)
                return (Acquire(session),)
            case Acquired(won):
                self._solved(Acquire)
                if won:
                    return self._read()
                # lost the race, or a lock-delay longer than ours: the key itself may not change for a while
                self._try_at = now + self.settings.retry * self._rng.uniform(0.75, 1.25)
                return self._read(self._try_at - now)
            case Renewed(session, began):
                return self._renewed(began) if session == self._session else ()
            case Failed(action, error):
                return self._failed(action, error, now)
            case Stopped():
                self._set(state=State.STOPPED, session=None, fresh=False)
                session_left, self._session = self._session, None
                # always a full resignation: an acquire whose answer was lost may have worked
                return (Resign(session_left),) if session_left else ()

    # -- main lane

    def _read(self, wait: float | None = None) -> tuple[Action, ...]:
        """Read the key: at once, or at its next change within ``wait`` seconds."""
        if wait is None:
            self._index.reset()
        self._resume_at = math.inf
        self._reading = True
        self._reads += 1
        return (ReadKey(self._reads, self._index.value, max(wait or self.settings.wait, 0.005)),)

    def _pause(self, now: float) -> tuple[Action, ...]:
        self._resume_at = now + self._backoff.next()
        return ()

    def _key_read(self, event: KeyRead, now: float) -> tuple[Action, ...]:
        self._reading = False
        self._silent_at = math.inf
        self._solved(ReadKey)
        self._index.advance(event.index)
        entry = event.entry
        holder = entry.session if entry else None
        if entry is None or holder is None:
            return self._key_free(entry, now)
        self._vacancy = None
        self._backoff.reset()
        if holder == self._session:
            return self._key_mine(entry, now)
        self._solved(CreateSession, Acquire)
        self._set(
            state=State.FOLLOWER,
            leader=LeaderRecord.parse(entry.value),
            epoch=entry.modify_index,
            session=holder,
            fresh=True,
        )
        return (*self._drop_session(), *self._read(self.settings.wait))

    def _key_mine(self, entry: KVEntry, now: float) -> tuple[Action, ...]:
        if now < self._lease_end - SAFETY:
            self._set(state=State.LEADER, leader=self.me, epoch=entry.modify_index, session=self._session, fresh=True)
        written = LeaderRecord.parse(entry.value)
        if written is not None and written.identity == self.me.identity:
            return self._read(self.settings.wait)
        if now < self._try_at:
            return self._read(self._try_at - now)
        self._try_at = now + self.settings.retry  # somebody keeps writing over our value: don't fight in a loop
        assert self._session is not None
        return (Acquire(self._session),)

    def _key_free(self, entry: KVEntry | None, now: float) -> tuple[Action, ...]:
        first = self.view.state is State.STARTING
        self._set(state=State.CANDIDATE, session=None, fresh=True)
        vacancy = (entry.modify_index, entry.lock_index) if entry else (0, 0)
        if vacancy != self._vacancy:
            self._vacancy = vacancy
            released = entry is None or LeaderRecord.parse(entry.value) is None
            # who has just started doesn't know how the key became free, and finds out by trying
            delay = 0.0 if released or first else self.settings.lock_delay
            jitter = min(self.settings.jitter, _RELEASED_JITTER) if released else self.settings.jitter
            self._try_at = now + delay + self._rng.uniform(0, jitter)
        if now < self._try_at:
            return self._read(self._try_at - now)
        if self._session is not None:
            return (Acquire(self._session),)
        bound = self._check_refusals < _CHECK_REFUSALS
        return (CreateSession(self._ttl, self.settings.service_checks if bound else ()),)

    # -- renewal lane

    def _schedule_renewal(self, began: float) -> None:
        self._renew_at = began + self._ttl / 2 * self._rng.uniform(0.9, 1.0)

    def _renewed(self, began: float) -> tuple[Action, ...]:
        self._solved(Renew)
        stale = self._renewal_failed or not self.view.fresh
        self._renewing = self._renewal_failed = False
        self._renew_backoff.reset()
        self._lease_end = began + self._ttl
        self._schedule_renewal(began)
        return self._read_anew() if stale else ()

    def _read_anew(self) -> tuple[Action, ...]:
        """Abandon a read or a pause of the main lane and read at once; leave other requests alone."""
        return self._read() if self._reading or self._resume_at < math.inf else ()

    def _drop_session(self) -> tuple[Action, ...]:
        dropped, self._session = self._session, None
        self._solved(Renew)
        return (Destroy(dropped),) if dropped else ()

    def _session_lost(self) -> None:
        self._session = None
        self._lease_end = -math.inf
        self._solved(Renew)
        if self.view.state is State.LEADER:
            self._set(state=State.SUSPENDED, session=None, fresh=False)

    # -- both

    def _tick(self, now: float) -> tuple[Action, ...]:
        actions: tuple[Action, ...] = ()
        if self._session is not None and not self._renewing and now >= self._renew_at:
            self._renewing = True
            actions += (Renew(self._session, max(self._ttl / 3, 1.0)),)
        if self.view.state is State.LEADER and now >= self._lease_end - SAFETY:
            self._set(state=State.SUSPENDED, fresh=False)
            actions += self._read_anew()
        if now >= self._silent_at:
            self._silent_at = math.inf
            if self.view.state is not State.STARTING:
                self._set(state=State.SUSPENDED, fresh=False)
        if now >= self._resume_at:
            actions += self._read()
        return actions

    def _failed(self, action: Action, error: ConsulError, now: float) -> tuple[Action, ...]:
        match action:
            case ReadKey(number):
                if number != self._reads:
                    return ()
                self._problems[ReadKey] = f"reading {self.settings.key}: {error}"
                self._reading = False
                self._set(fresh=False)
                if self.view.state in (State.FOLLOWER, State.CANDIDATE) and self._silent_at == math.inf:
                    self._silent_at = now + self._ttl
                return self._pause(now)
            case CreateSession():
                self._problems[CreateSession] = f"creating a session: {error}"
                if isinstance(error, InvalidSessionTTL):
                    self._ttl = max(self._ttl, error.minimum or 10.0)
                if isinstance(error, CheckNotPassing):
                    # a check turns green soon after registration; if it never does, any leader is better than none
                    self._check_refusals += 1
                return self._pause(now)
            case Acquire(session):
                self._problems[Acquire] = f"locking {self.settings.key}: {error}"
                if isinstance(error, InvalidSession) and session == self._session:
                    self._session_lost()
                return self._pause(now)
            case Renew(session, _) if session == self._session:
                self._renewing = False
                # Only Consul's own 404 proves that the session is gone, and it names the session; a proxy's
                # doesn't.  Once the lease is over nothing is lost by starting afresh.
                if isinstance(error, NotFound) and (session in str(error) or now >= self._lease_end):
                    self._session_lost()
                    return self._read_anew()
                self._problems[Renew] = f"renewing the session: {error}"
                self._renewal_failed = True
                self._renew_at = now + self._renew_backoff.next()
                return ()
            case _:
                return ()

    def _solved(self, *kinds: type[Action]) -> None:
        for kind in kinds:
            self._problems.pop(kind, None)

    def _set(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
