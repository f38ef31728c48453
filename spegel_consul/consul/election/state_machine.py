# Who leads?  The decisions, without I/O and without a clock.
#
# The elected node is a rendezvous, nothing more: the ring is joined through it, and it owns nothing.  So a wrong
# answer for a few seconds is harmless, a flapping one is not, and losing Consul must change nothing.
#
# One lock on one key, held by a session.  Sessions are lazy: a follower has none, because each session costs
# the servers a renewal every few seconds.  A session is made when the key is free and this node's jitter has elapsed,
# and destroyed if another node was faster.
#
#                 ┌──────────── key held by another ───────────┐
#     STARTING ───┤                                            ▼
#                 └─ key free ─▶ CANDIDATE ──acquired, read──▶ LEADER     FOLLOWER ── key free ─▶ CANDIDATE
#                                                               │            │
#                lease over, or nothing heard for a TTL ────────┴─ SUSPENDED ┘  ── heard again ─▶ as read
#
# Two lanes run at once, each with at most one request in flight:
#
#   main       read the key (blocking) → when free: create a session → read again → acquire → read, to confirm.
#              An "acquire" that timed out may have worked and one that worked may already be void, so a read is
#              the only way to LEADER; and a read costs less than a write that a faster node has made pointless.
#              Every delay on this way is a blocking read: the winner wakes the losers.
#   heartbeat  renews the session, or asks whether the servers are there (see heartbeat.py).
#
# Servers that have just elected their leader may answer from before: for some milliseconds a renewal is told
# "not found" and a plain read shows an old holder (Session.Renew and the KV endpoint ask the leader's memory, before
# the log is applied to it; seen with Consul 1.8).  So the one who holds a session reads consistently, which such a
# leader refuses, and no answer but such a read ends a session: a lost session has lost its lock.
#
# When a node asks for a free lock, so that a crowd does not ask at once: see turn.py.
#
# A process that was killed and is started again finds the lock held by its former self: nobody else has this
# identity at these addresses, so it hands over from there instead of waiting for the old session to end.  Only at
# the start, because two copies of one identity would otherwise take the lock from each other for ever.

"""The election's state machine: events and the time go in, actions come out."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from spegel_consul.consul.api.backoff import Backoff, BlockingIndex
from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.api.consul_errors import (
    AccessDenied,
    ConsulError,
    InvalidSession,
    InvalidSessionTTL,
    NotFound,
)
from spegel_consul.consul.election.acquisition import Acquisition
from spegel_consul.consul.election.election_events import (
    Acquire,
    Acquired,
    Action,
    CreateSession,
    Destroy,
    Event,
    Failed,
    KeyRead,
    Probe,
    Probed,
    ReadKey,
    Renew,
    Renewed,
    Resign,
    SessionCreated,
    Started,
    Stopped,
    Ticked,
)
from spegel_consul.consul.election.election_view import ElectionSettings, State, View
from spegel_consul.consul.election.leader_record import LeaderRecord
from spegel_consul.consul.election.session_lease import Heartbeat

SAFETY = 0.5
"""Seconds before its lease ends that a leader stops calling itself one."""


class Election:
    """One node's part in the election. ``me`` is what others learn if it wins.

    Two things may be set at any time. ``crowd``: how many nodes take part, 0 for not known. ``alive_until``: before
    when a check to which the session is bound can't have failed.
    """

    def __init__(self, settings: ElectionSettings, me: LeaderRecord, rng: random.Random) -> None:
        self.settings = settings
        self.me = me
        self.alive_until = math.inf
        self.view = View()
        self.denied: str | None = None
        """Why this node's token may not lead, if it may not; known only once it was tried."""
        self._rng = rng
        self._heart = Heartbeat(settings.ttl, settings.lock_delay, rng)
        self._problems: dict[type[Action], str] = {}
        # main lane: exactly one of a read, another request, or a pause is going on
        self._reads = 0
        self._reading = False
        self._resume_at = math.inf
        self._paced = False  # the pause is one between reads of a free key
        self._index = BlockingIndex()
        self._backoff = Backoff(0.25, 10.0, rng)
        self._acquisition = Acquisition(settings, rng)
        self._doubted = False  # a renewal was told that there is no such session
        # of both
        self._silent_at = math.inf  # not heard until then, we are SUSPENDED

    @property
    def crowd(self) -> int:
        return self._acquisition.crowd

    @crowd.setter
    def crowd(self, nodes: int) -> None:
        self._acquisition.crowd = nodes

    @property
    def ttl(self) -> float:
        """The TTL in use: that of the settings, or the nearest that the servers allow."""
        return self._heart.ttl

    @property
    def problem(self) -> str | None:
        """What does not work at the moment, in one line for people; None when all is well."""
        return next(iter(self._problems.values()), self.denied if self.view.state is State.CANDIDATE else None)

    @property
    def _lead_end(self) -> float:
        """When this node stops calling itself the leader, unless it hears from Consul."""
        return min(self._heart.lease_end, self.alive_until + self.settings.lock_delay) - SAFETY

    @property
    def deadline(self) -> float:
        """When Ticked is due."""
        state = self.view.state
        return min(
            self._resume_at,
            self._heart.deadline,
            self._silent_at if state in (State.FOLLOWER, State.CANDIDATE) else math.inf,
            self._lead_end if state is State.LEADER else math.inf,
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
                self._solved(CreateSession, Renew, Probe)
                self._heart.hold(session, began)
                return self._read(self._acquisition.soon(now - began))
            case Acquired(won):
                self._solved(Acquire)
                self.denied = None
                if won:
                    return self._read()
                self._acquisition.refused(now)
                return self._read(self._acquisition.at - now)
            case Renewed(action, began):
                return self._heard(action, began, now)
            case Probed(action):
                return self._heard(action, now, now)
            case Failed(action, error):
                return self._failed(action, error, now)
            case Stopped():
                self._set(state=State.STOPPED, session=None, fresh=False)
                session_left = self._heart.drop(now)
                # always a full resignation: an acquire whose answer was lost may have worked
                return (Resign(session_left),) if session_left else ()

    # -- main lane

    def _read(self, wait: float | None = None) -> tuple[Action, ...]:
        """Read the key: at once, or at its next change within ``wait`` seconds."""
        if wait is None:
            self._index.reset()
        self._resume_at, self._paced = math.inf, False
        self._reading = True
        self._reads += 1
        wait = self.settings.wait if wait is None else max(wait, 0.005)
        return (ReadKey(self._reads, self._index.value, wait, self._heart.session is not None),)

    def _pause(self, now: float) -> tuple[Action, ...]:
        self._resume_at, self._paced = now + self._backoff.next(), False
        return ()

    def _key_read(self, event: KeyRead, now: float) -> tuple[Action, ...]:
        self._reading = False
        self._resume_at = math.inf
        self._silent_at = now + self.ttl
        self._heart.watch(now)
        self._solved(ReadKey)
        self._index.advance(event.index)
        entry = event.entry
        if entry is None or entry.session is None:
            return self._key_free(entry, now)
        self._acquisition.taken()
        self._backoff.reset()
        if entry.session == self._heart.session:
            return self._key_mine(entry, entry.session, now)
        return self._key_others(entry, entry.session, now)

    def _key_others(self, entry: KVEntry, holder: str, now: float) -> tuple[Action, ...]:
        starting = self.view.state is State.STARTING
        record = LeaderRecord.parse(entry.value)
        self._solved(CreateSession, Acquire)
        self._set(state=State.FOLLOWER, leader=record, epoch=entry.modify_index, session=holder, fresh=True)
        if starting and record is not None and record.identity == self.me.identity:
            return (Resign(holder), *self._read(self.settings.wait))
        return (*self._drop_session(now), *self._read(self.settings.wait))

    def _key_mine(self, entry: KVEntry, session: str, now: float) -> tuple[Action, ...]:
        self._doubted = False
        if now < self._lead_end:
            self._set(state=State.LEADER, leader=self.me, epoch=entry.modify_index, session=session, fresh=True)
        written = LeaderRecord.parse(entry.value)
        if written is not None and written.identity == self.me.identity:
            # a leader may not trust a silent connection for long: an operator may have taken the key away
            return self._read(min(self.settings.wait, max(self._heart.lease, 1.0)))
        if now < self._acquisition.at:
            return self._read(self._acquisition.at - now)
        self._acquisition.wait(now, self.settings.retry)  # somebody keeps writing over our value: don't fight in a loop
        return (Acquire(session),)

    def _key_free(self, entry: KVEntry | None, now: float) -> tuple[Action, ...]:
        if self._doubted:
            self._session_lost(now)
        first = self.view.state is State.STARTING
        self._set(state=State.CANDIDATE, session=None, fresh=True)
        self._acquisition.vacant(entry, now, starting=first)
        if now < self._acquisition.at:
            if now < self._acquisition.read_again:
                self._resume_at, self._paced = self._acquisition.read_again, True
                return ()
            return self._read_free(now)
        if self._heart.session is not None:
            return (Acquire(self._heart.session),)
        return (CreateSession(self.ttl),)

    def _read_free(self, now: float) -> tuple[Action, ...]:
        """Read the key again when it changes or this node's turn has come."""
        self._acquisition.read(now)
        return self._read(min(self._acquisition.at - now, self.settings.wait))

    def _drop_session(self, now: float) -> tuple[Action, ...]:
        self._solved(Renew)
        self._doubted = False
        dropped = self._heart.drop(now)
        return (Destroy(dropped),) if dropped else ()

    def _session_lost(self, now: float) -> None:
        self._drop_session(now)
        self._suspend()

    def _suspend(self) -> None:
        if self.view.state is State.LEADER:
            self._set(state=State.SUSPENDED, session=None, fresh=False)

    # -- heartbeat lane

    def _heard(self, action: Renew | Probe, began: float, now: float) -> tuple[Action, ...]:
        recovered = self._heart.answered(action, began, now)
        self._silent_at = now + self.ttl
        self._solved(Renew, Probe)
        if not recovered and self.view.fresh:
            return ()
        return self._read_anew() if isinstance(action, Renew) else self._read_soon(now)

    def _read_anew(self) -> tuple[Action, ...]:
        """Abandon a read or a pause of the main lane and read at once; leave other requests alone."""
        return self._read() if self._reading or self._resume_at < math.inf else ()

    def _read_soon(self, now: float) -> tuple[Action, ...]:
        """The same, some time within which all nodes spread: their probes work again at the same moment."""
        if self._reading or self._resume_at < math.inf:
            self._resume_at = min(self._resume_at, now + self._acquisition.spread())
            self._paced = False
        return ()

    # -- both

    def _tick(self, now: float) -> tuple[Action, ...]:
        actions: tuple[Action, ...] = self._heart.beat(now)
        if self.view.state is State.LEADER and now >= self._lead_end:
            self._set(state=State.SUSPENDED, fresh=False)
            actions += self._read_anew()
        if self.view.state in (State.FOLLOWER, State.CANDIDATE) and now >= self._silent_at:
            self._set(state=State.SUSPENDED, fresh=False)
        if now >= self._resume_at:
            actions += self._read_free(now) if self._paced else self._read()
        return actions

    def _failed(self, action: Action, error: ConsulError, now: float) -> tuple[Action, ...]:
        match action:
            case ReadKey(number):
                if number != self._reads:
                    return ()
                self._problems[ReadKey] = f"reading {self.settings.key}: {error}"
                self._reading = False
                self._set(fresh=False)
                return self._pause(now)
            case CreateSession() | Acquire() if isinstance(error, AccessDenied):
                return self._deny(action, error, now)
            case CreateSession():
                self._problems[CreateSession] = f"creating a session: {error}"
                if isinstance(error, InvalidSessionTTL):
                    self._heart.ttl = error.nearest(self.ttl)
                return self._pause(now)
            case Acquire(session):
                self._problems[Acquire] = f"locking {self.settings.key}: {error}"
                if isinstance(error, InvalidSession) and session == self._heart.session:
                    self._session_lost(now)
                return self._pause(now)
            case Renew() | Probe():
                return self._beat_failed(action, error, now)
            case _:
                return ()

    def _deny(self, action: CreateSession | Acquire, error: AccessDenied, now: float) -> tuple[Action, ...]:
        """This token may follow and not lead: do that, and try now and then, because tokens are replaced."""
        what = "creating a session" if isinstance(action, CreateSession) else f"locking {self.settings.key}"
        self.denied = f"{what}: {error}"
        wait = self._acquisition.denied(now)
        return (*self._drop_session(now), *self._read(min(wait, self.settings.wait)))

    def _beat_failed(self, action: Renew | Probe, error: ConsulError, now: float) -> tuple[Action, ...]:
        if not self._heart.failed(action, now, self._acquisition.together):
            return ()
        if isinstance(action, Probe):
            self._problems[Probe] = f"asking for Consul's leader: {error}"
            self._set(fresh=False)
            return ()
        # Only Consul's own 404 says that the session is gone, and it names the session; a proxy's doesn't.  Once its
        # TTL is over nothing is lost by asking.
        if isinstance(error, NotFound) and (action.session in str(error) or now >= self._heart.session_end):
            self._doubted = True
            self._suspend()
            return self._read_anew()
        self._problems[Renew] = f"renewing the session: {error}"
        return ()

    def _solved(self, *kinds: type[Action]) -> None:
        for kind in kinds:
            self._problems.pop(kind, None)

    def _set(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
