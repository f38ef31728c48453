"""``Registration``: keeps this node's services registered with its Consul agent.

Agents forget services (with a new data directory), and operators deregister them.  So the services of the agent are
read every few seconds, and missing or altered ones are registered again.  All are registered again when the token
changes, because the agent synchronises a service with the token that registered it.  Ids that a former configuration
of this node left behind (another name, another port) are removed: they have this node's peer id, or an address and port
at which only this process can listen.

One of these ids that returns after its removal is no former one: another sidecar lives that has this node's peer id,
because nothing locks a data directory.  Removing it again would never end, because that sidecar does the same.  So it
is left, and is a problem until it is gone.  If that sidecar was killed, the agent removes the id after five minutes.

Under Nomad a job may register the services instead.  Two registrations would count as two instances.  So in the mode
"auto" a service that Nomad has registered for this allocation is left to Nomad, and withdrawn here.  Nomad registers
after it has started the task, so it gets NOMAD_GRACE seconds for that.  The same grace begins if a service of Nomad's
vanishes: Nomad withdraws services ``shutdown_delay`` before it stops the task, and a node that is about to stop must
not return into DNS.  In the mode "external" all services are left to others.

A new rule about the registration or removal of services belongs here.  Their fields belong to ``service_definitions``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import structlog
import trio

from spegel_consul.backoff import Backoff
from spegel_consul.consul.api.client import AgentService, ConsulClient
from spegel_consul.consul.api.consul_errors import ConsulError
from spegel_consul.consul.catalog.service_definitions import METRICS, REGISTRY, ROUTER, ServiceDefinition
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.log import ProblemReport
from spegel_consul.peers import host_port

log = structlog.get_logger(__name__)

DEREGISTER_WITHIN = 3.0
"""Seconds by which deregistration may delay a shutdown."""
NOMAD_GRACE = 10.0
"""Seconds for which a service is left to Nomad before it is registered here."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes at the agent: first ids to remove, then services to register."""

    remove: tuple[str, ...] = ()
    register: tuple[ServiceDefinition, ...] = ()
    left: tuple[str, ...] = ()
    """Names of services that are left to others."""
    doubles: tuple[AgentService, ...] = ()
    """Services of another sidecar that lives and has this node's peer id, the registry first; they are left too."""


def compare(
    wanted: Sequence[ServiceDefinition],
    present: Mapping[str, AgentService],
    *,
    external: bool = False,
    alloc_id: str | None = None,
    register_all: bool = False,
    removed: Collection[str] = (),
) -> Changes:
    """The changes that lead from ``present`` to ``wanted``.

    ``external`` leaves all services to others, and ``alloc_id`` leaves to Nomad the services that it registered for
    that allocation. ``register_all`` also registers services that are present already. ``removed``: ids that were
    removed before.
    """
    left = {
        service.name for service in wanted if external or (alloc_id and _nomad_has(present, alloc_id, service.name))
    }
    ours = [service for service in wanted if service.name not in left]
    keep = {service.id for service in ours}
    superfluous = [found for found in present.values() if found.id not in keep and _left_over(found, wanted)]
    doubles = [found for found in superfluous if found.id in removed and not _is_here(found, wanted)]
    return Changes(
        remove=tuple(found.id for found in superfluous if found not in doubles),
        register=tuple(service for service in ours if register_all or not service.matches(present.get(service.id))),
        left=tuple(sorted(left)),
        doubles=tuple(sorted(doubles, key=lambda found: found.name)),
    )


def _nomad_has(present: Mapping[str, AgentService], alloc_id: str, name: str) -> bool:
    return any(found.name == name and found.id.startswith(f"_nomad-task-{alloc_id}") for found in present.values())


def _left_over(found: AgentService, wanted: Sequence[ServiceDefinition]) -> bool:
    """Whether ``found`` is a former or superfluous registration of this node."""
    if found.name not in (REGISTRY, ROUTER, METRICS) or not found.id.startswith(f"{found.name}:"):
        return False
    return _is_here(found, wanted) or any(
        found.meta.get("peer_id") == service.meta.get("peer_id") is not None for service in wanted
    )


def _is_here(found: AgentService, wanted: Sequence[ServiceDefinition]) -> bool:
    """Whether ``found`` has an id of this process, or an address and port at which only this process can listen."""
    return any(
        found.id == service.id
        or (found.name, found.address, found.port) == (service.name, service.address, service.port)
        for service in wanted
    )


def _double_problem(doubles: Sequence[AgentService]) -> str | None:
    if not doubles:
        return None
    found = doubles[0]
    return (
        f"two sidecars with one identity run on this machine; the other one is registered as {found.id} at "
        f"{host_port(found.address, found.port)}: stop one of them, or give each its own --data-dir "
        "(troubleshooting.md)"
    )


class Registration:
    """Keeps ``services`` registered with the agent while it runs, and deregisters them at the end.

    Does not raise if the agent is unavailable or refuses: see :attr:`problem`. With ``external`` it only removes
    registrations of a former run. ``alloc_id`` is the Nomad allocation for which a job may register the services
    instead. ``poll``: seconds between two readings of the agent's services.
    """

    def __init__(
        self,
        client: ConsulClient,
        services: Sequence[ServiceDefinition],
        *,
        external: bool = False,
        alloc_id: str | None = None,
        poll: float = 12.0,
    ) -> None:
        self.services = tuple(services)
        self._client = client
        self._external, self._alloc_id = external, alloc_id
        self._poll = poll
        self._rng = random.Random()
        self._token: str | None = None
        self._fresh = True
        self._removed: set[str] = set()  # ids of former registrations
        self._double: str | None = None
        self._left: frozenset[str] = frozenset()
        self._grace_until = -math.inf
        names = frozenset(service.name for service in services)
        self._own: frozenset[str] = frozenset() if external or alloc_id else names
        self._report = ProblemReport(log, "registration hindered", "registration unhindered")

    def describe(self, meta: Mapping[str, str]) -> None:
        """Add ``meta`` to the metadata of each service; the next reading of the agent's services registers it."""
        self.services = tuple(replace(each, meta={**each.meta, **meta}) for each in self.services)

    @property
    def problem(self) -> str | None:
        """One line for people that says why services are missing from the catalog, or doubled; None if all is well."""
        return self._report.problem

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the services registered until cancelled, then deregister within 3 s; calls ``started()`` at once."""
        backoff = Backoff(0.25, self._poll, self._rng)
        if self._alloc_id:
            self._grace_until = trio.current_time() + NOMAD_GRACE
        task_status.started()
        try:
            while True:
                try:
                    settled = await self._reconcile()
                except ConsulError as why:
                    self._report.tell(f"registering services: {why}")
                    delay = backoff.next()
                else:
                    self._report.tell(self._double)
                    backoff.reset()
                    delay = self._poll * self._rng.uniform(0.8, 1.2) if settled else 0.5
                await trio.sleep(delay)
        finally:
            await self._deregister()

    async def _reconcile(self) -> bool:
        """Carry out the changes. False if nothing was changed because Nomad may still register a service."""
        token = await self._client.token()
        present = await self._client.agent_services()
        changes = compare(
            self.services,
            present,
            external=self._external,
            alloc_id=self._alloc_id,
            register_all=self._fresh or token != self._token,
            removed=self._removed,
        )
        self._double = _double_problem(changes.doubles)
        left, now = frozenset(changes.left), trio.current_time()
        if self._left - left:
            self._grace_until = now + NOMAD_GRACE
        self._left = left
        own = {service.name for service in self.services} - left
        if own and now < self._grace_until:
            return False
        self._own = frozenset(own)
        for service_id in changes.remove:
            await self._client.deregister_service(service_id)
            self._removed.add(service_id)
            log.info("removed a former registration", service=service_id)
        for service in changes.register:
            await self._client.register_service(service.to_json())
            log.info("registered", service=service.id, again=not self._fresh)
        if self._fresh and changes.left:
            log.info("services are registered by somebody else", services=changes.left)
        self._token, self._fresh = token, False
        return True

    async def _deregister(self) -> None:
        with trio.move_on_after(DEREGISTER_WITHIN, shield=True) as limit:
            for service in self.services:
                if service.name not in self._own:
                    continue
                try:
                    await self._client.deregister_service(service.id)
                except ConsulError as why:
                    log.warning("could not deregister", service=service.id, error=str(why))
        if limit.cancelled_caught:
            log.warning("could not deregister in time", seconds=DEREGISTER_WITHIN)
