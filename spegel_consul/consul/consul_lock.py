"""``ConsulLock``: the lock of the election as a key of Consul, held by a session.

A read shows the session that holds the key, and a refused attempt costs no write.  Agents with Consul's default gossip
declare a lost node dead sooner than its session's TTL ends, and the session ends with it.

With a ``leader_service`` the session is bound to its check, so that the lock ends soon after this process; without one
it ends after two TTLs.  The service is registered before the session is made, because Consul refuses a session with a
check that it does not know, and deregistered while another node leads.

A new rule about Consul's sessions belongs here; a new decision of the election belongs to ``election/state_machine``.
"""

from __future__ import annotations

import math
from contextlib import suppress

import structlog
import trio

from spegel_consul.consul.api.client import ConsulClient, KVEntry
from spegel_consul.consul.api.consul_errors import AccessDenied, CheckNotPassing, ConsulError, NoClusterLeader
from spegel_consul.consul.catalog.leader_service import LeaderService
from spegel_consul.election.election_view import ElectionSettings
from spegel_consul.election.leader_record import FLAGS, LeaderRecord, utc_now, vacant
from spegel_consul.election.lock_store import LockRules, LockStore

log = structlog.get_logger(__name__)

RULES = LockRules(ends_early=5.0)
"""Gossip takes at least that many seconds to declare a lost node dead (measured: 6.5)."""
CHECK_WITHIN = 2.0
"""Seconds after which a session is made without a check that the servers do not know."""

_LONGEST_PAUSE = 0.32


class ConsulLock(LockStore):
    """The lock on the key of ``settings``. ``leader_service`` is the service whose check the session is bound to."""

    def __init__(
        self,
        client: ConsulClient,
        settings: ElectionSettings | None = None,
        leader_service: LeaderService | None = None,
    ) -> None:
        super().__init__(settings or ElectionSettings(), RULES)
        self._client = client
        self._leader_service = leader_service
        self._register_denied = False  # this token may not register spegel-leader
        self._bound = False  # the last session is bound to the check of spegel-leader

    @property
    def alive_until(self) -> float:
        return self._leader_service.alive_until if self._bound and self._leader_service is not None else math.inf

    async def run(self) -> None:
        if self._leader_service is not None:
            await self._leader_service.run()

    async def rest(self) -> None:
        if self._leader_service is not None:
            await self._leader_service.deregister()

    async def read(self, index: int, wait: float, *, consistent: bool) -> tuple[int, KVEntry | None]:
        return await self._client.kv_get(self.settings.key, index, wait, consistent=consistent)

    async def create_session(self, me: LeaderRecord, ttl: float) -> tuple[str, float]:
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
                    f"spegel {me.node or me.peer_id}",
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
                return session, began

    async def acquire(self, session: str, me: LeaderRecord) -> bool:
        value = me.to_json(session=session, since=utc_now())
        return await self._client.kv_acquire(self.settings.key, session, value, FLAGS)

    async def renew(self, session: str, within: float) -> None:
        await self._client.session_renew(session, within)

    async def probe(self, within: float) -> None:
        """Any server answers from memory which of them is the Raft leader."""
        if not await self._client.status_leader(within):
            raise NoClusterLeader("the servers have no leader")

    async def destroy(self, session: str) -> None:
        await self.rest()
        with suppress(ConsulError):
            await self._client.session_destroy(session)

    async def resign(self, session: str, me: LeaderRecord) -> None:
        """Release the key, then destroy the session: the reverse order would start the lock-delay."""
        await self._client.kv_release(self.settings.key, session, vacant(released_by=me.node, at=utc_now()), FLAGS)
        await self._client.session_destroy(session)

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
