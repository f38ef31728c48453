"""The election's state machine: events and the time go in, actions come out.

It has no I/O and no clock.  The elected node is a bootstrap peer and nothing more: the ring is joined through it, and
it owns nothing.  So a wrong answer for some seconds is harmless, an answer that flaps is not, and the loss of the
lock's store must change nothing.

There is one lock on one key, held by a session.  Sessions are lazy: a follower has none, because each session costs the
servers a renewal every few seconds.  A session is made when the key is free and this node's jitter has elapsed, and
destroyed if another node was faster.

                ┌──────────── key held by another ───────────┐
    STARTING ───┤                                            ▼
                └─ key free ─▶ CANDIDATE ──acquired, read──▶ LEADER     FOLLOWER ── key free ─▶ CANDIDATE
                                                              │            │
               lease over, or no answer for a TTL ────────────┴─ SUSPENDED ┘  ── an answer ─▶ as read

Two lanes run at once, each with at most one request in flight:

  main       Reads the key (blocking).  When it is free: creates a session, reads again, acquires, reads to confirm.
             An "acquire" that timed out may have worked, and one that worked may already be void, so a read is the
             only way to LEADER.  A read also costs less than a write that a faster node has made pointless.  Each
             delay on this way is a blocking read, so that the winner wakes the losers.
  heartbeat  Renews the session, or asks whether the servers are available (``session_lease``).

Servers that have just elected their Raft leader may answer with old data: for some milliseconds a renewal gets "not
found", and a plain read shows an old holder (Session.Renew and the KV endpoint ask the leader's memory before the log
is applied to it; seen with Consul 1.8).  So a node with a session reads consistently, which such a leader refuses, and
only such a read ends a session: a lost session has lost its lock.  Where a read does not show who holds the lock, the
answer to a renewal ends it.

The time at which a node tries to acquire a lock is that of ``acquisition``, so that many nodes do not try at once.

Stores differ (``lock_store.LockRules``).  If a store does not show who holds its lock, a FOLLOWER tries to acquire it
too, seldom, because the holder that the value names may be dead.

A process that was killed and starts again finds the lock held by its former session.  No other node has this identity
at these addresses, so it hands over from there and does not wait for the end of the old session.  It does so only at
its start, because two copies of one identity would otherwise take the lock from each other for ever.

A node that may not lead (``Eligibility``) follows without a session.  If it leads, it releases the lock as soon as a
read confirms that it has it, so that a request in flight is not overtaken by the release.

A new decision of the election belongs here.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from spegel_consul.backoff import Backoff, BlockingIndex
from spegel_consul.election.acquisition import Acquisition
from spegel_consul.election.election_events import (
    Acquire,
    Acquired,
    Action,
    CreateSession,
    Destroy,
    Eligibility,
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
from spegel_consul.election.election_view import ElectionSettings, State, View
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import (
    LockEntry,
    LockError,
    LockRules,
    NoLocks,
    NotPermitted,
    SessionEnded,
    SessionUnknown,
    TTLRefused,
)
from spegel_consul.election.session_lease import Heartbeat

SAFETY = 0.5
"""Seconds before the end of its lease at which a leader stops to lead."""


class Election:
    """The election, as one node takes part in it. ``me`` is the record that it publishes if it wins.

    Two attributes may be set at any time. ``cluster_size``: number of nodes in the election, 0 for unknown.
    ``alive_until``: the time before which the check that the session is bound to does not fail.
    """

    def __init__(self, settings: ElectionSettings, rules: LockRules, me: LeaderRecord, rng: random.Random) -> None:
        self.settings = settings
        self.me = me
        self.alive_until = math.inf
        self.view = View()
        self.denied: str | None = None
        """The reason why this node may not lead; None if it may, and before the first attempt."""
        self.has_no_locks = False
        """Whether nobody can lead, because the store has no locks; who is named as the leader may be dead."""
        self._shows_holder = rules.try_held == math.inf
        # without probes a node hears nothing for as long as one read waits
        self._longest_silence = 0.0 if rules.probes else settings.wait
        self._heartbeat = Heartbeat(settings, rules, rng)
        self._problems: dict[type[Action], str] = {}
        # main lane: there is always exactly one of a read, another request, or a pause
        self._reads = 0
        self._reading = False
        self._resume_at = math.inf
        self._awaits_spacing = False  # the pause is a spacing of reads of a free key
        self._index = BlockingIndex()
        self._backoff = Backoff(0.25, 10.0, rng)
        self._acquisition = Acquisition(settings, rules, rng)
        self._session_doubted = False  # a renewal was answered with "not found"
        self._suspend_at = math.inf  # both lanes: without an answer until then the state is SUSPENDED

    @property
    def cluster_size(self) -> int:
        return self._acquisition.cluster_size

    @cluster_size.setter
    def cluster_size(self, nodes: int) -> None:
        self._acquisition.cluster_size = nodes

    @property
    def ttl(self) -> float:
        """The TTL in use: the TTL of the settings, or the nearest one that the servers allow."""
        return self._heartbeat.ttl

    @property
    def problem(self) -> str | None:
        """One line for people that says what does not work; None if there is no problem."""
        is_needed = self.has_no_locks or self.view.state is State.CANDIDATE
        return next(iter(self._problems.values()), self.denied if is_needed else None)

    @property
    def _lead_end(self) -> float:
        """The time at which this node stops to lead if no renewal succeeds."""
        return min(self._heartbeat.lease_end, self.alive_until + self.settings.lock_delay) - SAFETY

    @property
    def deadline(self) -> float:
        """The time at which Ticked is due."""
        state = self.view.state
        return min(
            self._resume_at,
            self._heartbeat.deadline,
            self._suspend_at if state in (State.FOLLOWER, State.CANDIDATE) else math.inf,
            self._lead_end if state is State.LEADER else math.inf,
        )

    def handle(self, event: Event, now: float) -> tuple[Action, ...]:
        """Return the actions that follow from ``event``, in order."""
        if self.view.state is State.STOPPED:
            return ()
        match event:
            case Started():
                return self._read()
            case Ticked():
                return self._tick(now)
            case Eligibility(eligible):
                if eligible == self._acquisition.eligible:
                    return ()
                self._acquisition.eligible = eligible
                return self._read_now()
            case KeyRead():
                return self._key_read(event, now) if event.number == self._reads else ()
            case SessionCreated(session, began):
                self._solved(CreateSession, Renew, Probe)
                self._heartbeat.hold(session, began)
                return self._read(self._acquisition.spread_again(now - began))
            case Acquired(won):
                self._solved(Acquire)
                self.denied, self.has_no_locks = None, False
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
                session_left = self._heartbeat.drop(now)
                # always release the key too, because an acquire whose answer was lost may have worked
                return (Resign(session_left),) if session_left else ()

    # -- main lane

    def _read(self, wait: float | None = None) -> tuple[Action, ...]:
        """Read the key: at once, or at its next change within ``wait`` seconds, or the longest wait of the settings."""
        if wait is None:
            self._index.reset()
            wait = self.settings.wait
        self._resume_at, self._awaits_spacing = math.inf, False
        self._reading = True
        self._reads += 1
        wait = min(max(wait, 0.005), self.settings.wait)
        return (ReadKey(self._reads, self._index.value, wait, self._heartbeat.session is not None),)

    def _pause(self, now: float) -> tuple[Action, ...]:
        self._resume_at, self._awaits_spacing = now + self._backoff.next(), False
        return ()

    def _key_read(self, event: KeyRead, now: float) -> tuple[Action, ...]:
        self._reading = False
        self._resume_at = math.inf
        self._answered(now)
        self._heartbeat.watch(now)
        self._solved(ReadKey)
        self._index.advance(event.index)
        entry = event.entry
        if entry is None or entry.session is None:
            return self._key_free(entry, now)
        self._backoff.reset()
        if entry.session == self._heartbeat.session:
            return self._key_mine(entry, entry.session, now)
        return self._key_others(entry, entry.session, now)

    def _key_others(self, entry: LockEntry, holder: str, now: float) -> tuple[Action, ...]:
        starting = self.view.state is State.STARTING
        record = LeaderRecord.parse(entry.value)
        self._solved(CreateSession, Acquire)
        self._set(state=State.FOLLOWER, leader=record, epoch=entry.modify_index, session=holder, fresh=True)
        next_try = self._acquisition.held(holder, now)
        if starting and self._shows_holder and record is not None and record.identity == self.me.identity:
            return (Resign(holder), *self._read(self.settings.wait))
        if now >= next_try:
            return self._attempt()
        return (*self._drop_session(now), *self._read(next_try - now))

    def _key_mine(self, entry: LockEntry, session: str, now: float) -> tuple[Action, ...]:
        self._session_doubted = False
        # also if the answer to the request that acquired it was lost
        self._solved(CreateSession, Acquire)
        self.denied, self.has_no_locks = None, False
        self._acquisition.taken()
        if not self._acquisition.eligible:
            # the session stays in the view until the lock is seen to be free, because its check must not end before
            self._set(state=State.FOLLOWER, leader=self.me, epoch=entry.modify_index, session=session, fresh=True)
            self._drop_session(now)  # without its Destroy, because Resign ends the session after the release
            return (Resign(session), *self._read(self.settings.wait))
        if now < self._lead_end:
            self._set(state=State.LEADER, leader=self.me, epoch=entry.modify_index, session=session, fresh=True)
        written = LeaderRecord.parse(entry.value)
        if written is not None and written.identity == self.me.identity:
            # a short read, because an operator may have taken the lock away behind a dead connection
            return self._read(max(self._heartbeat.lease, 1.0))
        if now < self._acquisition.at:
            return self._read(self._acquisition.at - now)
        self._acquisition.wait(now, self.settings.retry)  # because another program may overwrite the value each time
        return (Acquire(session),)

    def _key_free(self, entry: LockEntry | None, now: float) -> tuple[Action, ...]:
        if self._session_doubted:
            self._session_lost(now)
        first, eligible = self.view.state is State.STARTING, self._acquisition.eligible
        self._set(state=State.CANDIDATE if eligible else State.FOLLOWER, session=None, fresh=True)
        self._acquisition.vacant(entry, now, starting=first)
        if now >= self._acquisition.at:
            return self._attempt()
        dropped = () if eligible else self._drop_session(now)
        if now < self._acquisition.read_again:
            self._resume_at, self._awaits_spacing = self._acquisition.read_again, True
            return dropped
        return (*dropped, *self._read_free(now))

    def _attempt(self) -> tuple[Action, ...]:
        session = self._heartbeat.session
        return (Acquire(session),) if session is not None else (CreateSession(self.ttl),)

    def _read_free(self, now: float) -> tuple[Action, ...]:
        """Read the key again when it changes, or when the attempt is due."""
        self._acquisition.read(now)
        return self._read(self._acquisition.at - now)

    def _drop_session(self, now: float) -> tuple[Action, ...]:
        self._solved(Renew)
        self._session_doubted = False
        dropped = self._heartbeat.drop(now)
        return (Destroy(dropped),) if dropped else ()

    def _session_lost(self, now: float) -> None:
        self._drop_session(now)
        self._suspend()

    def _suspend(self) -> None:
        if self.view.state is State.LEADER:
            self._set(state=State.SUSPENDED, session=None, fresh=False)

    # -- heartbeat lane

    def _heard(self, action: Renew | Probe, began: float, now: float) -> tuple[Action, ...]:
        recovered = self._heartbeat.answered(action, began, now)
        self._answered(now)
        self._solved(Renew, Probe)
        if not recovered and self.view.fresh:
            return ()
        return self._read_now() if isinstance(action, Renew) else self._read_soon(now)

    def _read_now(self) -> tuple[Action, ...]:
        """Abandon a read or a pause of the main lane and read at once; leave other requests alone."""
        return self._read() if self._reading or self._resume_at < math.inf else ()

    def _read_soon(self, now: float) -> tuple[Action, ...]:
        """The same after a random time, because the probes of all nodes succeed again at the same moment."""
        if self._reading or self._resume_at < math.inf:
            self._resume_at = min(self._resume_at, now + self._acquisition.spread())
            self._awaits_spacing = False
        return ()

    # -- both

    def _answered(self, now: float) -> None:
        self._suspend_at = now + self.ttl + self._longest_silence

    def _tick(self, now: float) -> tuple[Action, ...]:
        actions: tuple[Action, ...] = self._heartbeat.beat(now)
        if self.view.state is State.LEADER and now >= self._lead_end:
            self._set(state=State.SUSPENDED, fresh=False)
            actions += self._read_now()
        if self.view.state in (State.FOLLOWER, State.CANDIDATE) and now >= self._suspend_at:
            self._set(state=State.SUSPENDED, fresh=False)
        if now >= self._resume_at:
            actions += self._read_free(now) if self._awaits_spacing else self._read()
        return actions

    def _failed(self, action: Action, error: LockError, now: float) -> tuple[Action, ...]:
        match action:
            case ReadKey(number):
                if number != self._reads:
                    return ()
                self._problems[ReadKey] = f"reading {self.settings.key}: {error}"
                self._reading = False
                self._set(fresh=False)
                return self._pause(now)
            case CreateSession() | Acquire() if isinstance(error, NotPermitted):
                return self._deny(action, error, now)
            case CreateSession():
                self._acquisition.failed()
                self._problems[CreateSession] = f"creating a session: {error}"
                if isinstance(error, TTLRefused):
                    self._heartbeat.ttl = error.nearest(self.ttl)
                return self._pause(now)
            case Acquire(session):
                self._acquisition.failed()
                self._problems[Acquire] = f"locking {self.settings.key}: {error}"
                if isinstance(error, SessionEnded) and session == self._heartbeat.session:
                    self._session_lost(now)
                return self._pause(now)
            case Renew() | Probe():
                return self._beat_failed(action, error, now)
            case _:
                return ()

    def _deny(self, action: CreateSession | Acquire, error: NotPermitted, now: float) -> tuple[Action, ...]:
        """Follow only, and try to lead again later, because tokens are replaced."""
        what = "creating a session" if isinstance(action, CreateSession) else f"locking {self.settings.key}"
        self.denied = f"{what}: {error}"
        self.has_no_locks = isinstance(error, NoLocks)
        wait = self._acquisition.denied(now)
        return (*self._drop_session(now), *self._read(wait))

    def _beat_failed(self, action: Renew | Probe, error: LockError, now: float) -> tuple[Action, ...]:
        if not self._heartbeat.failed(action, now, self._acquisition.spread_time):
            return ()
        if isinstance(action, Probe):
            self._problems[Probe] = f"asking for the servers' leader: {error}"
            self._set(fresh=False)
            return ()
        ended = isinstance(error, SessionEnded) and not self._shows_holder
        if ended:
            self._session_lost(now)
        # after _session_lost, which solves it, because the log has to say why this node leads no longer
        self._problems[Renew] = f"renewing the session: {error}"
        # only a 404 of Consul itself names the session, and so proves that it is gone; after the TTL any 404 counts,
        # because a read costs nothing then
        if isinstance(error, SessionUnknown) and (action.session in str(error) or now >= self._heartbeat.session_end):
            self._session_doubted = ended = True
            self._suspend()
        return self._read_now() if ended else ()

    def _solved(self, *kinds: type[Action]) -> None:
        for kind in kinds:
            self._problems.pop(kind, None)

    def _set(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
