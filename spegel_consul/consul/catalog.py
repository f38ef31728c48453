# What this node says of itself in the catalog.
#
# Three services, one port each, because DNS answers a name with all its instances: `spegel` is the registry and
# only the registry, so that `spegel.service.consul:5000` is right for every answer.  Each has one check, which
# the agent runs; a node that stops answering leaves DNS after one interval.
#
# Ids are stable over restarts (`spegel:<node>`), so that a restart replaces and never doubles an instance.  Agents
# forget (a new data directory) and operators deregister, so the agent is looked at every few seconds and what is
# missing or altered is registered again; so it is when our token changes, because the agent syncs a service with
# the token that registered it.  Under Nomad a job may register the services instead: then don't run this.

"""Registration of this node's services with its Consul agent."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
import trio

from spegel_consul.consul.client import AgentService, ConsulClient
from spegel_consul.consul.duration import format_duration
from spegel_consul.consul.errors import ConsulError
from spegel_consul.consul.pace import Backoff

log = structlog.get_logger(__name__)

REGISTRY, ROUTER, METRICS = "spegel", "spegel-router", "spegel-metrics"
DEFAULT_REGISTRY_PORT = 5000
DEREGISTER_WITHIN = 3.0
"""Seconds that deregistration may delay a shutdown."""


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """The agent gets ``url`` every ``interval`` seconds; 2xx passes. Certificates are not verified."""

    url: str
    interval: float = 2.0


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """The agent connects to ``address`` (``host:port``, IPv6 in brackets) every ``interval`` seconds."""

    address: str
    interval: float = 2.0


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """One service of this node. ``address`` is an IP address: a name would become a CNAME in DNS."""

    id: str
    name: str
    address: str
    port: int
    check: HttpCheck | TcpCheck
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def check_id(self) -> str:
        """The id of its check, for sessions that shall end with it."""
        return f"{self.id}:check"

    def to_json(self) -> dict[str, object]:
        """The body of ``/v1/agent/service/register``."""
        check: dict[str, object] = {
            "CheckID": self.check_id,
            "Name": f"{self.name} answers",
            "Interval": format_duration(self.check.interval),
            "Timeout": format_duration(max(self.check.interval, 1.0)),
            # what a node that never came back leaves behind; the poll registers a live one again
            "DeregisterCriticalServiceAfter": "5m",
        }
        if isinstance(self.check, HttpCheck):
            check |= {"HTTP": self.check.url, "TLSSkipVerify": True}
        else:
            # it listens before it is registered, so a session that is bound to it need not wait for the first probe
            check |= {"TCP": self.check.address, "Status": "passing"}
        return {
            "ID": self.id,
            "Name": self.name,
            "Address": self.address,
            "Port": self.port,
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Checks": [check],
        }

    def matches(self, present: AgentService | None) -> bool:
        """True if the agent has this service as it is described here."""
        return present is not None and (
            (present.name, present.address, present.port, set(present.tags), dict(present.meta))
            == (self.name, self.address, self.port, set(self.tags), dict(self.meta))
        )


def spegel_services(
    *,
    node: str,
    address: str,
    peer_id: str,
    router_addr: str,
    version: str,
    registry_port: int,
    router_port: int,
    metrics_port: int,
    scheme: str = "http",
    ready_path: str = "/readyz",
    live_path: str = "/livez",
    interval: float = 2.0,
) -> tuple[ServiceDefinition, ServiceDefinition, ServiceDefinition]:
    """The registry, router and metrics services of one node, in this order.

    ``node`` must be stable and unique among the sidecars of one agent, apart from the registry port: another
    than 5000 becomes part of the ids. ``address`` is the advertised IP address, ``router_addr`` the router's
    multiaddr with its ``/p2p`` part, ``scheme`` the registry's and ``interval`` that of the checks in seconds.
    """
    suffix = node if registry_port == DEFAULT_REGISTRY_PORT else f"{node}:{registry_port}"
    host = f"[{address}]" if ":" in address else address
    meta = {"peer_id": peer_id, "version": version, "advertise": address, "router": router_addr}
    ready = HttpCheck(f"{scheme}://{host}:{registry_port}{ready_path}", interval)
    live = HttpCheck(f"http://{host}:{metrics_port}{live_path}", interval)
    router = TcpCheck(f"{host}:{router_port}", interval)
    return (
        ServiceDefinition(f"{REGISTRY}:{suffix}", REGISTRY, address, registry_port, ready, meta=meta),
        ServiceDefinition(f"{ROUTER}:{suffix}", ROUTER, address, router_port, router, meta=meta),
        ServiceDefinition(f"{METRICS}:{suffix}", METRICS, address, metrics_port, live, meta=meta),
    )


def nomad_registers(present: Iterable[AgentService], alloc_id: str, name: str) -> bool:
    """True if Nomad registered service ``name`` for this allocation, so that doing it too would double it."""
    return any(service.name == name and service.id.startswith(f"_nomad-task-{alloc_id}") for service in present)


class Registration:
    """Keeps ``services`` registered with the agent while it runs, and deregisters them at the end.

    Never fails because the agent is away or refuses: see :attr:`problem`. ``poll`` is how often the agent is
    looked at, in seconds.
    """

    def __init__(
        self,
        client: ConsulClient,
        services: Sequence[ServiceDefinition],
        *,
        poll: float = 12.0,
        rng: random.Random | None = None,
    ) -> None:
        self.services = tuple(services)
        self._client = client
        self._poll = poll
        self._rng = rng or random.Random()
        self._token: str | None = None
        self._fresh = True
        self._problem: str | None = None
        self._registered = trio.Event()

    @property
    def problem(self) -> str | None:
        """Why the services may be missing from the catalog, in one line; None when all is well."""
        return self._problem

    async def registered(self) -> None:
        """Return when the agent took all services for the first time."""
        await self._registered.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep them registered until cancelled, then deregister within 3 s; ``started()`` at once."""
        backoff = Backoff(0.25, self._poll, self._rng)
        task_status.started()
        try:
            while True:
                try:
                    await self._reconcile()
                except ConsulError as why:
                    self._report(f"registering services: {why}")
                    delay = backoff.next()
                else:
                    self._report(None)
                    self._registered.set()
                    backoff.reset()
                    delay = self._poll * self._rng.uniform(0.8, 1.2)
                await trio.sleep(delay)
        finally:
            await self._deregister()

    async def _reconcile(self) -> None:
        token = self._client.token
        anew = self._fresh or token != self._token
        present = {} if anew else await self._client.agent_services()
        for service in self.services:
            if anew or not service.matches(present.get(service.id)):
                await self._client.register_service(service.to_json())
                log.info("registered", service=service.id, again=not self._fresh)
        self._token, self._fresh = token, False

    async def _deregister(self) -> None:
        with trio.move_on_after(DEREGISTER_WITHIN, shield=True) as limit:
            for service in self.services:
                try:
                    await self._client.deregister_service(service.id)
                except ConsulError as why:
                    log.warning("could not deregister", service=service.id, error=str(why))
        if limit.cancelled_caught:
            log.warning("could not deregister in time", seconds=DEREGISTER_WITHIN)

    def _report(self, problem: str | None) -> None:
        if problem != self._problem:
            self._problem = problem
            if problem:
                log.warning("registration hindered", problem=problem)
            else:
                log.info("registration unhindered")
