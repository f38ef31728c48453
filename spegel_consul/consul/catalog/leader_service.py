"""``LeaderService``: the service ``spegel-leader`` of this node.

The node that holds the lock, or is about to acquire it, registers one more service: ``spegel-leader``, with a TTL check
that passes only while this process reports it.  The session of the lock is bound to that check.  So a leader whose
process was killed or hangs is replaced within seconds; by the session's TTL alone it would take twice the TTL.  The
leader also has a DNS name by it.

It is a TTL check because of agents that restart: all other checks begin as failed, which would end the session, but the
state of a TTL check is kept on disk.  A report is one request to the agent of this node, and none to the servers.  An
agent that waits for the servers while it synchronises a change takes no report meanwhile (it holds the lock of its
state; local/state.go, SyncChanges).  So if the servers lose their quorum while a check of the leader's node changes,
the lock may be lost at the moment of their return, and another node has it within a second.

A new rule about the check of the lock belongs here.
"""

from __future__ import annotations

import math
import random
from contextlib import suppress

import structlog
import trio

from spegel_consul.backoff import Backoff
from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import AccessDenied, ConsulError, ConsulUnavailable, RateLimited
from spegel_consul.consul.catalog.service_definitions import LEADER_CHECK_TTL, ServiceDefinition
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_REPORT_EVERY = LEADER_CHECK_TTL / 6
_LONGEST_PAUSE = 5.0  # seconds between reports that the agent refuses
_DEREGISTER_WITHIN = 3.0


class LeaderService:
    """Keeps ``service``, which has one TTL check, registered between :meth:`register` and :meth:`deregister`."""

    def __init__(self, client: ConsulClient, service: ServiceDefinition) -> None:
        self.check_id = service.check_id("ttl")
        self.alive_until = math.inf
        """The check does not fail before this Trio time."""
        self._client = client
        self._service = service
        self._order = trio.Lock()  # so that the last call wins
        self._wanted = trio.Event()
        self._registered = True  # perhaps, by a former process
        self._token: str | None = None  # with which it was registered

    async def register(self) -> None:
        """Register the service as passing; :meth:`run` keeps it so. Raises ConsulError."""
        async with self._order:
            self._registered = True
            await self._register()
            await self._pass()  # because the agent keeps the state that a former process left
            self._wanted.set()

    async def deregister(self) -> None:
        """Deregister the service, if it may be registered; takes at most 3 s. Raises nothing; run() tries again."""
        with trio.move_on_after(_DEREGISTER_WITHIN, shield=True) as limit:
            async with self._order:
                if self._wanted.is_set():
                    self._wanted = trio.Event()
                await self._deregister()
        if limit.cancelled_caught:
            log.debug("could not deregister in time", service=self._service.id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the check passing while the service is registered, and deregister what is left, until cancelled.

        Calls ``started()`` at once.
        """
        task_status.started()
        report = ProblemReport(log, "the check of spegel-leader can't be reported")
        pauses = Backoff(_REPORT_EVERY, _LONGEST_PAUSE, random.Random())
        while True:
            with trio.move_on_after(_LONGEST_PAUSE) as unwanted:
                await self._wanted.wait()
            if unwanted.cancelled_caught:
                with trio.move_on_after(_DEREGISTER_WITHIN):  # because a registration waits for it
                    async with self._order:
                        if not self._wanted.is_set():
                            await self._deregister()  # else the name would be answered with this node for minutes
                continue
            try:
                # the agent synchronises a check with the token that registered it
                if await self._client.token() != self._token:
                    await self._register_again(None)
                await self._pass()
            except ConsulUnavailable:
                await trio.sleep(_REPORT_EVERY / 3)  # so that an agent that returns gets a report early
                continue
            except (AccessDenied, RateLimited) as why:
                report.tell(str(why))
                await trio.sleep(pauses.next())
                continue
            except ConsulError as why:
                await self._register_again(why)
            report.tell(None)
            pauses.reset()
            await trio.sleep(_REPORT_EVERY)

    async def _deregister(self) -> None:
        if self._registered:
            try:
                await self._client.deregister_service(self._service.id)
                self._registered = False
            except ConsulError as why:
                log.debug("could not deregister", service=self._service.id, error=str(why))

    async def _pass(self) -> None:
        began = trio.current_time()
        await self._client.check_pass(self.check_id, within=LEADER_CHECK_TTL / 2)
        self.alive_until = began + LEADER_CHECK_TTL

    async def _register(self) -> None:
        token = await self._client.token()
        await self._client.register_service(self._service.to_json())
        self._token = token

    async def _register_again(self, why: ConsulError | None) -> None:
        """Register the service again: the agent has forgotten its check, as ``why`` tells, or the token has changed."""
        async with self._order:
            if self._wanted.is_set():
                if why is not None:
                    log.info("the agent forgot spegel-leader", error=str(why))
                with suppress(ConsulError):
                    await self._register()
