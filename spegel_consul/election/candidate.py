"""``Candidate``: this node's part in the election, as a Trio task.

It carries out the actions of ``state_machine``.  Each action is a task that sends one request and passes the answer
back as an event; one more task waits for the deadline.  Nothing is decided here, and only cancellation ends it.

A new kind of request, or of log event about the election, belongs here; a new decision belongs to ``state_machine``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import structlog
import trio

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied, CheckNotPassing, ConsulError, NoClusterLeader
from spegel_consul.consul.catalog.leader_service import LeaderService
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
from spegel_consul.election.election_view import ElectionSettings, State, View
from spegel_consul.election.leader_record import FLAGS, LeaderRecord, vacant
from spegel_consul.election.state_machine import Election
from spegel_consul.log import ProblemReport
from spegel_consul.observable import Observable

log = structlog.get_logger(__name__)

RESIGN_WITHIN = 3.0
"""Seconds by which the release of the lock may delay a shutdown."""
CHECK_WITHIN = 2.0
"""Seconds after which a session is made without a check that the servers do not know."""

_LONGEST_PAUSE = 0.32


class Candidate:
    """Takes part in the election of the bootstrap peer with ``me`` as the record to publish.

    ``cluster_size`` returns the known number of nodes in the election, 0 for unknown; their attempts spread with it.
    With a ``leader_service`` the lock ends soon after this process, without one after two TTLs.
    Does not raise if Consul is unavailable or refuses: see :attr:`view` and :attr:`problem`.
    """

    def __init__(
        self,
        client: ConsulClient,
        me: LeaderRecord,
        settings: ElectionSettings | None = None,
        *,
        cluster_size: Callable[[], int] = lambda: 0,
        leader_service: LeaderService | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.me = me
        self.settings = settings or ElectionSettings()
        self._client = client
        self._crowd, self._leader_service = cluster_size, leader_service
        self._rng = rng or random.Random()
        self._election = Election(self.settings, me, self._rng)
        self._nursery: trio.Nursery | None = None
        self._reading = trio.CancelScope()  # of the read in flight, if any
        self._view = Observable(self._election.view)
        self._problem: str | None = None
        self._report = ProblemReport(log, "election hindered", "election unhindered")
        self._denied: str | None = None
        self._ttl = self.settings.ttl
        self._register_denied = False  # this token may not register spegel-leader
        self._bound = False  # the last session is bound to the check of spegel-leader
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
            self._election = Election(self.settings, self.me, self._rng)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self._leader_service is not None:
                    nursery.start_soon(self._leader_service.run)
                self._feed(Started())
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
            await self._deregister_leader_service()

    def _deadline(self) -> float:
        self._update_inputs()
        return self._election.deadline

    def _update_inputs(self) -> None:
        self._election.cluster_size = self._crowd()
        self._election.alive_until = (
            self._leader_service.alive_until if self._bound and self._leader_service else math.inf
        )

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
            except ConsulError as error:
                event = Failed(action, error)
        if event is not None:
            self._feed(event)

    async def _send(self, action: Action) -> Event | None:
        key, began = self.settings.key, trio.current_time()
        match action:
            case ReadKey(number, index, wait, consistent):
                return KeyRead(number, *await self._client.kv_get(key, index, wait, consistent=consistent))
            case CreateSession(ttl):
                return await self._create_session(ttl)
            case Acquire(session):
                value = self.me.to_json(session=session, since=_utc_now())
                return Acquired(await self._client.kv_acquire(key, session, value, FLAGS))
            case Renew(session, within):
                await self._client.session_renew(session, within)
                return Renewed(action, began)
            case Probe(within):
                if not await self._client.status_leader(within):
                    raise NoClusterLeader("the servers have no leader")
                return Probed(action)
            case Destroy(session):
                await self._deregister_leader_service()
                with suppress(ConsulError):
                    await self._client.session_destroy(session)
            case Resign():
                log.info("taking over from this node's former process", session=action.session)
                await self._resign(action)
        return None

    async def _deregister_leader_service(self) -> None:
        if self._leader_service is not None:
            await self._leader_service.deregister()

    async def _register(self, leader_service: LeaderService) -> bool:
        """Register ``leader_service``. False if the token may not, so that the lock can't be bound to its check."""
        try:
            await leader_service.register()
        except AccessDenied as why:
            if not self._register_denied:
                log.warning("the lock does not end with this process: may not register spegel-leader", error=str(why))
            self._register_denied = True
            await leader_service.deregister()  # because an earlier candidacy may have registered it
        else:
            self._register_denied = False
        return not self._register_denied

    async def _create_session(self, ttl: float) -> SessionCreated:
        checks = (
            (self._leader_service.check_id,)
            if self._leader_service is not None and await self._register(self._leader_service)
            else ()
        )
        give_up, pause = trio.current_time() + CHECK_WITHIN, 0.02
        while True:
            began = trio.current_time()
            try:
                session = await self._client.session_create(
                    f"spegel {self.me.node or self.me.peer_id}",
                    ttl=ttl,
                    lock_delay=self.settings.lock_delay,
                    behavior=self.settings.behavior,
                    service_checks=checks,
                )
            except CheckNotPassing:
                if not checks:
                    raise  # because the node's own check fails
                # the agent sends a new check to the servers soon; if it does not, any leader is better than none
                if began >= give_up:
                    checks = ()
                else:
                    await trio.sleep(min(pause, give_up - began))
                    pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._bound = bool(checks)
                return SessionCreated(session, began)

    async def _resign(self, action: Resign) -> None:
        value = vacant(released_by=self.me.node, at=_utc_now())
        with trio.move_on_after(RESIGN_WITHIN, shield=True) as limit:
            try:
                await self._client.kv_release(self.settings.key, action.session, value, FLAGS)
                await self._client.session_destroy(action.session)
            except ConsulError as why:
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
            others = new.leader is None or new.leader.identity != self.me.identity
            if new.state is State.FOLLOWER and others and self._nursery is not None:
                self._nursery.start_soon(self._deregister_leader_service)
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
                log.warning("following only: this token may not lead", error=denied)
        self._report.tell(problem if problem != denied else None)
        self._problem, self._denied = problem, denied


def _utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
