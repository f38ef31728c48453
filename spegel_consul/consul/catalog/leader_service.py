# The node that has the lock, or is about to ask for it, registers one more service: `spegel-leader`, with a check that
# passes only as long as we say so.  The lock's session is bound to that check.  So a leader whose process was killed or
# hangs is replaced within seconds, where the session's TTL alone would take twice its length; and it is a DNS name.
#
# It is a TTL check because of agents that restart: they begin with all checks failed, which would end the session,
# except for those, whose state they keep on disk.  A tick is one request to the agent on this node; the servers
# don't hear of it.  But an agent that has something to tell them, and waits for them, takes no tick meanwhile (it holds
# its state's lock during the call; local/state.go, SyncChanges).  So when the servers lose their quorum while a check
# of the leader's node is changing, the lock may be lost the moment they are back, and somebody has it within a second.

"""``LeaderService``: the service ``spegel-leader`` of this node."""

from __future__ import annotations

import math
from contextlib import suppress

import structlog
import trio

from spegel_consul.consul.api.client import ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError, ConsulUnavailable
from spegel_consul.consul.catalog.service_definitions import LEADER_CHECK_TTL, ServiceDefinition

log = structlog.get_logger(__name__)

_TICK = LEADER_CHECK_TTL / 6
_OUT_WITHIN = 3.0


class LeaderService:
    """Registers ``service``, which has one TTL check, between :meth:`light` and :meth:`out`."""

    def __init__(self, client: ConsulClient, service: ServiceDefinition) -> None:
        self.check_id = service.check_id("ttl")
        self.alive_until = math.inf
        """Not before then the check fails."""
        self._client = client
        self._service = service
        self._acquisition = trio.Lock()  # what was asked for last is done last
        self._lit = trio.Event()
        self._registered = True  # perhaps, by a former process

    async def light(self) -> None:
        """Register it as passing; :meth:`run` keeps it so. Raises ConsulError."""
        async with self._acquisition:
            self._registered = True
            await self._client.register_service(self._service.to_json())
            await self._pass()  # it keeps the state that a former process left
            self._lit.set()

    async def out(self) -> None:
        """Deregister it, if it may be registered; takes at most 3 s and never fails."""
        with trio.move_on_after(_OUT_WITHIN, shield=True) as limit:
            async with self._acquisition:
                if self._lit.is_set():
                    self._lit = trio.Event()
                if self._registered:
                    try:
                        await self._client.deregister_service(self._service.id)
                        self._registered = False
                    except ConsulError as why:
                        log.debug("could not deregister", service=self._service.id, error=str(why))
        if limit.cancelled_caught:
            log.debug("could not deregister in time", service=self._service.id)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say that it passes while it is lit, until cancelled; ``started()`` at once."""
        task_status.started()
        while True:
            await self._lit.wait()
            try:
                await self._pass()
            except ConsulUnavailable:
                await trio.sleep(_TICK / 3)  # an agent that comes back should find us there
                continue
            except ConsulError as why:
                await self._again(why)
            await trio.sleep(_TICK)

    async def _pass(self) -> None:
        began = trio.current_time()
        await self._client.check_pass(self.check_id, within=LEADER_CHECK_TTL / 2)
        self.alive_until = began + LEADER_CHECK_TTL

    async def _again(self, why: ConsulError) -> None:
        """The agent has forgotten the check."""
        async with self._acquisition:
            if self._lit.is_set():
                log.info("the agent forgot spegel-leader", error=str(why))
                with suppress(ConsulError):
                    await self._client.register_service(self._service.to_json())
