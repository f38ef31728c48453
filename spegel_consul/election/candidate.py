"""``Candidate``: this node's part in the election, as a Trio task.

It carries out the actions of ``state_machine`` with the requests of a ``LockStore``.  Each action is a task that sends
one request and passes the answer back as an event; one more task waits for the deadline.  Nothing is decided here, and
only cancellation ends it.

A new kind of action, or of log event about the election, belongs here; a new decision belongs to ``state_machine``, and
a new request to the stores.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import structlog
import trio

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
from spegel_consul.election.election_view import State, View
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.election.lock_store import LockError, LockStore
from spegel_consul.election.state_machine import Election
from spegel_consul.log import ProblemReport
from spegel_consul.observable import Observable

log = structlog.get_logger(__name__)

RESIGN_WITHIN = 3.0
"""Seconds by which the release of the lock may delay a shutdown."""


class Candidate:
    """Takes part in the election at ``store`` with ``me`` as the record to publish.

    ``cluster_size`` returns the known number of nodes in the election, 0 for unknown; their attempts spread with it.
    ``obstacle`` has the reason for which this node must not lead, in one line for people, and None while it may lead.
    Does not raise if the store is unavailable or refuses: see :attr:`view` and :attr:`problem`.
    """

    def __init__(
        self,
        store: LockStore,
        me: LeaderRecord,
        *,
        cluster_size: Callable[[], int] = lambda: 0,
        obstacle: Observable[str | None] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.me = me
        self._store = store
        self._obstacle = obstacle or Observable[str | None](None)
        self._crowd = cluster_size
        self._rng = rng or random.Random()
        self._election = self._new_election()
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()  # of the read in flight, if any
        self._view = Observable(self._election.view)
        self._problem: str | None = None
        self._report = ProblemReport(log, "election hindered", "election unhindered")
        self._denied: str | None = None
        self._ttl = store.settings.ttl
        self._rescheduled = trio.Event()

    @property
    def view(self) -> View:
        """The current view of the election."""
        return self._view.value

    @property
    def problem(self) -> str | None:
        """One line for people that says what does not work; None if there is no problem."""
        return self._problem

    async def changed(self, since: View) -> View:
        """Return the view as soon as it differs from ``since``. Views that lasted for an instant may be left out."""
        return await self._view.changed(since)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled, then resign within 3 s; calls ``started()`` at once. Can be run again."""
        if self._election.view.state is State.STOPPED:
            self._election = self._new_election()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._store.run)
                self._feed(Started())
                nursery.start_soon(self._heed_obstacle)
                task_status.started()
                while True:
                    rescheduled = self._rescheduled
                    with trio.move_on_at(self._deadline()):
                        await rescheduled.wait()
                    if trio.current_time() >= self._deadline():
                        self._feed(Ticked())
        finally:
            self._nursery = None
            for action in self._feed(Stopped()):
                if isinstance(action, Resign):
                    await self._resign(action)
            await self._store.rest()

    async def _heed_obstacle(self) -> None:
        while True:
            obstacle = self._obstacle.value
            self._feed(Eligibility(obstacle is None))
            await self._obstacle.changed(obstacle)

    def _new_election(self) -> Election:
        return Election(self._store.settings, self._store.rules, self.me, self._rng)

    def _deadline(self) -> float:
        self._update_inputs()
        return self._election.deadline

    def _update_inputs(self) -> None:
        self._election.cluster_size = self._crowd()
        self._election.alive_until = self._store.alive_until

    def _feed(self, event: Event) -> tuple[Action, ...]:
        self._update_inputs()
        actions = self._election.handle(event, trio.current_time())
        if self._nursery is not None:
            for action in actions:
                scope = trio.CancelScope()
                if isinstance(action, ReadKey):
                    self._reading.cancel()
                    self._reading = scope
                self._nursery.start_soon(self._perform, action, scope)
        self._rescheduled.set()
        self._rescheduled = trio.Event()
        self._publish()
        return actions

    async def _perform(self, action: Action, scope: trio.CancelScope) -> None:
        event: Event | None = None
        with scope:
            try:
                event = await self._send(action)
            except LockError as error:
                event = Failed(action, error)
        if event is not None:
            self._feed(event)

    async def _send(self, action: Action) -> Event | None:
        began = trio.current_time()
        match action:
            case ReadKey(number, index, wait, consistent):
                return KeyRead(number, *await self._store.read(index, wait, consistent=consistent))
            case CreateSession(ttl):
                return SessionCreated(*await self._store.create_session(self.me, ttl))
            case Acquire(session):
                return Acquired(await self._store.acquire(session, self.me))
            case Renew(session, within):
                await self._store.renew(session, within)
                return Renewed(action, began)
            case Probe(within):
                await self._store.probe(within)
                return Probed(action)
            case Destroy(session):
                await self._store.destroy(session)
            case Resign():
                if self._obstacle.value is None:
                    log.info("taking over from this node's former process", session=action.session)
                else:
                    log.warning("handing over the lead", reason=self._obstacle.value)
                await self._resign(action)
        return None

    async def _resign(self, action: Resign) -> None:
        with trio.move_on_after(RESIGN_WITHIN, shield=True) as limit:
            try:
                await self._store.resign(action.session, self.me)
            except LockError as why:
                log.warning("could not resign; the lock ends with its session", error=str(why))
        if limit.cancelled_caught:
            log.warning("could not resign in time; the lock ends with its session", seconds=RESIGN_WITHIN)

    def _publish(self) -> None:
        old, new = self.view, self._election.view
        if self._view.set(new):
            if replace(new, epoch=0, session=None) != replace(old, epoch=0, session=None):
                log.info(
                    "election",
                    state=new.state.value,
                    leader=new.leader.node or new.leader.peer_id if new.leader else None,
                    epoch=new.epoch,
                    fresh=new.fresh,
                )
            mine = new.session is not None and new.leader is not None and new.leader.identity == self.me.identity
            if new.state is State.FOLLOWER and not mine and self._nursery is not None:
                self._nursery.start_soon(self._store.rest)
        self._report_problem(None if new.state is State.STOPPED else self._election.problem)

    def _report_problem(self, problem: str | None) -> None:
        """Log a problem when it begins and when it ends."""
        denied, ttl = self._election.denied, self._election.ttl
        if ttl != self._ttl:
            log.warning("session TTL adjusted to the servers' limits", asked=self._ttl, used=ttl)
            self._ttl = ttl
        if denied != self._denied:
            if denied is None:
                log.info("this token may lead")
            elif self._denied is None:
                if self._election.has_no_locks:
                    log.warning("following only: nobody can lead", error=denied)
                else:
                    log.warning("following only: this token may not lead", error=denied)
        self._report.tell(problem if problem != denied else None)
        self._problem, self._denied = problem, denied
