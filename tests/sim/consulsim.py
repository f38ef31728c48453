# Servers and agents as numbers and a queue of moments: no loop, no requests, so that ten thousand elections with
# faults take seconds.  The rules are those of FakeConsul, which were measured at Consul 1.8.  Each node has an agent.
# What can go wrong: the way from a sidecar to its agent (refused, or silent), an agent that dies (gossip notices after
# some seconds and its sessions end), servers without a quorum (timers stand still), a server's leader that changes
# (lock-delays are forgotten, timers start again, and for a moment it answers from before), an operator, and processes
# that are killed and started again.

"""A simulated cluster: election cores, a lock, sessions, and a clock that jumps from event to event."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable

from spegel_consul.consul.api.client import KVEntry
from spegel_consul.consul.api.consul_errors import (
    ConsulError,
    ConsulTimeout,
    ConsulUnavailable,
    InvalidSession,
    NoClusterLeader,
    NotFound,
)
from spegel_consul.consul.catalog.service_definitions import LEADER_CHECK_TTL
from spegel_consul.consul.consul_lock import RULES
from spegel_consul.election.election_events import (
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
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import LeaderRecord, vacant
from spegel_consul.election.state_machine import Election
from tests.sim.consul_sidecars import Session, Sidecar, leads, time_limit

GOSSIP = (5.0, 8.0)
LATENCY = (0.001, 0.02)
KEEPALIVE = 25.0
"""When the kernel gives up a connection whose other end is gone."""

_NOTHING = Probed(Probe(-1.0))


class Simulation:
    """``count`` nodes under ``settings``; ``rng`` decides on everything that is left to chance."""

    def __init__(self, count: int, settings: ElectionSettings, rng: random.Random, *, leader_service: bool) -> None:
        self.now = 0.0
        self.settings = settings
        self.leader_service = leader_service
        self.rng = rng
        self.quorum = True
        self.behind_until = -math.inf
        """Until then the servers' leader answers from memory that its log was not yet applied to."""
        self.refused: Counter[int] = Counter()
        self.silent: Counter[int] = Counter()
        self.dead: Counter[int] = Counter()
        self.lock_delay_until = -math.inf
        self.holder: str | None = None
        self.value: bytes | None = None
        self.index, self.lock_index = 10, 0
        self._past: list[tuple[int, KVEntry | None]] = [(10, None)]
        self.sessions: dict[str, Session] = {}
        self.excused_until = -math.inf
        """An operator, or servers that forgot a lock-delay, may have given the lock away before its time."""
        self.violations: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._fed = False
        self._names = itertools.count()
        self._waiting: list[tuple[Sidecar, ReadKey]] = []
        self.sidecars = [self._sidecar(number) for number in range(count)]

    # -- the clock

    def at(self, moment: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (moment, next(self._order), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, do = heapq.heappop(self._queue)
            do()
            if self._fed:
                self._fed = False
                self._check()
        self.now = until

    # -- sidecars

    def _sidecar(self, number: int) -> Sidecar:
        me = LeaderRecord(f"p{number}", (f"/ip4/10.0.0.{number}/tcp/1/p2p/p{number}",), node=f"n{number}")
        election = Election(self.settings, RULES, me, random.Random(self.rng.random()))
        election.cluster_size = 3
        sidecar = Sidecar(number, election)
        self.at(self.now, lambda: self._feed(sidecar, Started()))
        return sidecar

    def kill(self, number: int) -> None:
        self.sidecars[number].alive = False

    def stop(self, number: int) -> None:
        sidecar = self.sidecars[number]
        if sidecar.alive:
            self._feed(sidecar, Stopped())
            sidecar.alive = False

    def start(self, number: int) -> None:
        if not self.sidecars[number].alive:
            self.sidecars[number] = self._sidecar(number)

    def leaders(self) -> list[Sidecar]:
        """Those that call themselves leaders."""
        return [sidecar for sidecar in self.sidecars if sidecar.alive and leads(sidecar.election.view)]

    def _feed(self, sidecar: Sidecar, event: Event) -> None:
        if not sidecar.alive:
            return
        self._fed = True
        for action in sidecar.election.handle(event, self.now):
            self._send(sidecar, action)
        if (deadline := sidecar.election.deadline) < math.inf and deadline != sidecar.wake:
            sidecar.wake = deadline
            self.at(max(deadline, self.now), lambda: self._tick(sidecar, deadline))

    def _tick(self, sidecar: Sidecar, due: float) -> None:
        if due == sidecar.wake:
            sidecar.wake = math.inf
            self._feed(sidecar, Ticked() if self.now >= sidecar.election.deadline else _NOTHING)

    # -- the way to the servers and back

    def _send(self, sidecar: Sidecar, action: Action) -> None:
        began = self.now
        if isinstance(action, ReadKey):
            sidecar.reading = action.number
            self._waiting = [(other, read) for other, read in self._waiting if other is not sidecar]
        if self.refused[sidecar.number]:
            self.after(0.001, lambda: self._fail(sidecar, action, ConsulUnavailable("refused")))
        elif self.silent[sidecar.number] or self.dead[sidecar.number]:
            limit = time_limit(action) + 3
            self.after(limit, lambda: self._fail(sidecar, action, ConsulTimeout("silent")))
        else:
            self.after(self.rng.uniform(*LATENCY), lambda: self._arrive(sidecar, action, began))

    def _arrive(self, sidecar: Sidecar, action: Action, began: float) -> None:
        if not self.quorum:
            held = 0.005 if isinstance(action, Probe) else min(7.0, time_limit(action))
            self.after(held, lambda: self._held(sidecar, action, began))
            return
        self._apply(sidecar, action, began)

    def _held(self, sidecar: Sidecar, action: Action, began: float) -> None:
        """Servers keep a request for a while in the hope of a leader."""
        if self.quorum and not isinstance(action, Probe):
            self._apply(sidecar, action, began)
        else:
            self._fail(sidecar, action, NoClusterLeader("500"))

    def _apply(self, sidecar: Sidecar, action: Action, began: float) -> None:
        event: Event | None = None
        error: ConsulError | None = None
        match action:
            case ReadKey(consistent=True) | Renew() if self.now < self.behind_until:
                if isinstance(action, Renew):
                    error = NotFound(f"404 Session id '{action.session}' not found")
                else:
                    error = NoClusterLeader("500 Not ready to serve consistent reads")
            case ReadKey(number, 0) if self.now < self.behind_until:
                event = KeyRead(number, *self.rng.choice(self._past[-3:]))
            case ReadKey(number, index, wait):
                if index and self.index <= index:
                    self._waiting.append((sidecar, action))
                    self.after(wait, lambda: self._answer_read(sidecar, action))
                    return
                event = KeyRead(number, self.index, self._entry())
            case CreateSession(ttl):
                session = f"s{next(self._names)}"
                self.sessions[session] = Session(sidecar.number, self.now + 2 * ttl)
                self._expire_later(session)
                event = SessionCreated(session, began)
                if self.leader_service:
                    self._passed(sidecar)
                    self._beat(sidecar, session)
                    self._watch_check(sidecar, session)
            case Acquire(session):
                if session not in self.sessions:
                    error = InvalidSession(f'500 invalid session "{session}"')
                else:
                    won = self.holder in (None, session) and self.now >= self.lock_delay_until
                    if won:
                        self.lock_index += self.holder != session
                        self.holder = session
                        self._write(sidecar.election.me.to_json(session=session, since=""))
                    event = Acquired(won)
            case Renew(session, _):
                if session in self.sessions:
                    self.sessions[session].ends = self.now + 2 * self.settings.ttl
                    event = Renewed(action, began)
                else:
                    error = NotFound(f"404 Session id '{session}' not found")
            case Probe():
                event = Probed(action)
            case Destroy(session):
                self._end(session)
            case Resign(session):
                if self.holder == session:
                    self.holder = None
                    self._write(vacant(released_by=None, at=""))
                self.sessions.pop(session, None)
        if error is not None:
            self.after(self.rng.uniform(*LATENCY), lambda: self._fail(sidecar, action, error))
        elif event is not None:
            self._answer(sidecar, action, event)

    def _answer(self, sidecar: Sidecar, action: Action, event: Event) -> None:
        if self._unreachable(sidecar):
            self.after(time_limit(action), lambda: self._fail(sidecar, action, ConsulTimeout("silent")))
        else:
            self.after(self.rng.uniform(*LATENCY), lambda: self._deliver(sidecar, action, event))

    def _unreachable(self, sidecar: Sidecar) -> bool:
        return any(affected[sidecar.number] for affected in (self.refused, self.silent, self.dead))

    def _deliver(self, sidecar: Sidecar, action: Action, event: Event) -> None:
        if not isinstance(action, ReadKey) or action.number == sidecar.reading:
            self._feed(sidecar, event)

    def _answer_read(self, sidecar: Sidecar, action: ReadKey) -> None:
        if (sidecar, action) in self._waiting:
            self._waiting.remove((sidecar, action))
            self._answer(sidecar, action, KeyRead(action.number, self.index, self._entry()))

    def _fail(self, sidecar: Sidecar, action: Action, error: ConsulError) -> None:
        if not isinstance(action, Destroy | Resign) and (
            not isinstance(action, ReadKey) or action.number == sidecar.reading
        ):
            self._feed(sidecar, Failed(action, error))

    # -- the servers

    def _entry(self) -> KVEntry | None:
        if self.value is None:
            return None
        return KVEntry(self.settings.key, self.value, self.holder, self.index)

    def _write(self, value: bytes | None) -> None:
        self.value, self.index = value, self.index + 1
        self._past = [*self._past[-2:], (self.index, self._entry())]
        waiting, self._waiting = self._waiting, []
        for sidecar, action in waiting:
            self._answer(sidecar, action, KeyRead(action.number, self.index, self._entry()))

    def _end(self, session: str) -> None:
        """The session ends, by its TTL, its node or an operator; its lock goes into lock-delay."""
        if self.sessions.pop(session, None) is not None and self.holder == session:
            self.holder = None
            self.lock_delay_until = self.now + self.settings.lock_delay
            self._write(None if self.settings.behavior == "delete" else self.value)

    def _expire_later(self, session: str) -> None:
        def due() -> None:
            found = self.sessions.get(session)
            if found is None:
                return
            if not self.quorum:
                self.after(1.0, due)
            elif self.now >= found.ends:
                self._end(session)
            else:
                self.at(found.ends, due)

        self.at(self.sessions[session].ends, due)

    # -- spegel-leader: its check at the sidecar's own agent

    def _beat(self, sidecar: Sidecar, session: str) -> None:
        if sidecar.alive and session in self.sessions:
            if not (self.refused[sidecar.number] or self.silent[sidecar.number]):
                self._passed(sidecar)
            self.after(LEADER_CHECK_TTL / 6, lambda: self._beat(sidecar, session))

    def _passed(self, sidecar: Sidecar) -> None:
        sidecar.passed = self.now
        sidecar.election.alive_until = self.now + LEADER_CHECK_TTL

    def _watch_check(self, sidecar: Sidecar, session: str) -> None:
        if session in self.sessions:
            fails = sidecar.passed + LEADER_CHECK_TTL
            if self.now < fails:
                self.at(fails, lambda: self._watch_check(sidecar, session))
            elif not self.quorum or self.dead[sidecar.number]:
                self.after(0.5, lambda: self._watch_check(sidecar, session))
            else:
                self._end(session)

    # -- faults

    def cut(self, number: int, how: str, seconds: float) -> None:
        """The way to the agent is ``refused`` or ``silent``, or the whole node is ``dead``, for a while."""
        affected: Counter[int] = getattr(self, how)
        affected[number] += 1
        sidecar = self.sidecars[number]
        for waiting, action in list(self._waiting):
            if waiting is sidecar:
                self._waiting.remove((waiting, action))
                later = 0.001 if how == "refused" else min(time_limit(action) + 3, KEEPALIVE)
                self.after(later, lambda action=action: self._fail(sidecar, action, ConsulUnavailable("reset")))
        if how == "dead" and affected[number] == 1 and (noticed := self.rng.uniform(*GOSSIP)) < seconds:
            self.after(noticed, lambda: self._declared_dead(number))
        self.after(seconds, lambda: self._healed(affected, number))

    def _healed(self, affected: Counter[int], number: int) -> None:
        affected[number] -= 1

    def _declared_dead(self, number: int) -> None:
        if self.quorum:
            for session in [name for name, found in self.sessions.items() if found.node == number]:
                self._end(session)

    def lose_quorum(self, seconds: float) -> None:
        self.quorum = False
        self.after(seconds, self.new_server_leader)

    def new_server_leader(self) -> None:
        """Timers start again, lock-delays are forgotten."""
        self.quorum = True
        self.behind_until = self.now + self.rng.uniform(0, 0.3)
        if self.now < self.lock_delay_until:
            self._excuse()
        self.lock_delay_until = -math.inf
        for found in self.sessions.values():
            found.ends = self.now + 2 * self.settings.ttl

    def destroy_session(self) -> None:
        if self.holder is not None and self.quorum:
            self._excuse()
            self._end(self.holder)

    def delete_key(self) -> None:
        if self.value is not None and self.quorum:
            self._excuse()
            self.holder = None
            self._write(None)

    def junk(self) -> None:
        if self.value is not None and self.quorum:
            self._write(b"\xff junk")

    def _excuse(self) -> None:
        lease = min(self.settings.ttl, self.settings.lock_delay + 5)
        self.excused_until = self.now + lease * 17 / 16 + 2 + 3  # a leader reads the key at least that often

    # -- what must hold at every moment

    def _check(self) -> None:
        leaders = self.leaders()
        if len(leaders) > 1 and self.now > self.excused_until:
            self.violations.append(f"{self.now:.3f} s: {[leader.number for leader in leaders]} lead")
