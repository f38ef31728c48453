# What this node says of itself in the catalog.
#
# Three services, one port each, because DNS answers a name with all its instances: `spegel` is the registry and
# only the registry, so that `spegel.service.consul:5000` is right for every answer.  The agent runs the checks; a node
# that stops answering leaves DNS after one interval.  The router has two: a process that hangs still has an open port.
# A fourth, `spegel-leader`, is registered only by the node that has the lock (see beacon.py).
#
# Ids are stable over restarts (`spegel:<node>`), so that a restart replaces and never doubles an instance.

"""This node's services, as they are registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from spegel_consul.consul.api.client import AgentService
from spegel_consul.consul.api.duration import format_duration
from spegel_consul.peers import host_port

REGISTRY, ROUTER, METRICS, LEADER = "spegel", "spegel-router", "spegel-metrics", "spegel-leader"
DEFAULT_REGISTRY_PORT = 5000
LEADER_CHECK_TTL = 3.0
"""Seconds after which a leader whose process hangs or was killed is noticed.

With the lock-delay of half a second another node leads within four.  Not shorter, because an agent that restarts
keeps the check's state only for that long, less what it cuts off in rounding to whole seconds.
"""


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """The agent gets ``url`` every ``interval`` seconds; 2xx passes, 429 warns. Certificates are not verified.

    ``passing`` is what it counts as before the first time.
    """

    url: str
    interval: float = 2.0
    passing: bool = False
    kind: ClassVar[str] = "http"

    def to_json(self) -> dict[str, object]:
        """What is particular to this kind."""
        return {"HTTP": self.url, "TLSSkipVerify": True, **_times(self.interval)}


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """The agent connects to ``address`` (``host:port``, IPv6 in brackets) every ``interval`` seconds.

    It counts as passing before the first time, because a port is open before it is registered.
    """

    address: str
    interval: float = 2.0
    passing: bool = True
    kind: ClassVar[str] = "tcp"

    def to_json(self) -> dict[str, object]:
        """What is particular to this kind."""
        return {"TCP": self.address, **_times(self.interval)}


@dataclass(frozen=True, slots=True)
class TtlCheck:
    """Passes for ``ttl`` seconds each time we say so. An agent that restarts within that time remembers it."""

    ttl: float
    passing: bool = True
    kind: ClassVar[str] = "ttl"

    def to_json(self) -> dict[str, object]:
        """What is particular to this kind."""
        return {"TTL": format_duration(self.ttl)}


def _times(interval: float) -> dict[str, object]:
    return {"Interval": format_duration(interval), "Timeout": format_duration(max(interval, 1.0))}


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """One service of this node. ``address`` is an IP address: a name would become a CNAME in DNS.

    ``weights`` are those of DNS SRV answers, for an instance that passes and for one that warns. At most one check
    of each kind.
    """

    id: str
    name: str
    address: str
    port: int
    checks: tuple[HttpCheck | TcpCheck | TtlCheck, ...]
    tags: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    weights: tuple[int, int] = (10, 1)

    def check_id(self, kind: str) -> str:
        """The id of its check of this kind, for sessions that shall end with it."""
        return f"{self.id}:{kind}"

    def to_json(self) -> dict[str, object]:
        """The body of ``/v1/agent/service/register``."""
        passing, warning = self.weights
        return {
            "ID": self.id,
            "Name": self.name,
            "Address": self.address,
            "Port": self.port,
            **self._by_family(),
            "Tags": list(self.tags),
            "Meta": dict(self.meta),
            "Weights": {"Passing": passing, "Warning": warning},
            "Checks": [self._check(check) for check in self.checks],
        }

    def _by_family(self) -> dict[str, object]:
        """Consul's names for the addresses of a node that has both families."""
        if "also" not in self.meta:
            return {}
        names = {
            f"lan_ipv{6 if ':' in address else 4}": {"Address": address, "Port": self.port}
            for address in (self.address, self.meta["also"])
        }
        return {"TaggedAddresses": names}

    def _check(self, check: HttpCheck | TcpCheck | TtlCheck) -> dict[str, object]:
        return {
            "CheckID": self.check_id(check.kind),
            "Name": f"{self.name} answers {check.kind.upper()}",
            # what a node that never came back leaves behind; a live one is registered again
            "DeregisterCriticalServiceAfter": "5m",
            **({"Status": "passing"} if check.passing else {}),
            **check.to_json(),
        }

    def matches(self, present: AgentService | None) -> bool:
        """True if the agent has this service as it is described here."""
        return present is not None and (
            (present.name, present.address, present.port, set(present.tags), dict(present.meta), present.weights)
            == (self.name, self.address, self.port, set(self.tags), dict(self.meta), self.weights)
        )


@dataclass(frozen=True, slots=True)
class Services:
    """What one node registers: ``always``, and ``leader`` while it leads."""

    always: tuple[ServiceDefinition, ...]
    leader: ServiceDefinition


_ALL = ("", "0.0.0.0", "::")  # noqa: S104


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
    interval: float = 2.0,
    verifies_clients: bool = False,
    secondary: str | None = None,
    metrics_bound: str = "",
) -> Services:
    """The registry, router and metrics services of one node, in this order, and that of the leader.

    ``node`` must be stable and unique among the sidecars of one agent, apart from the registry port: another
    than 5000 becomes part of the ids. ``address`` is the advertised IP address, ``router_addr`` the router's
    multiaddr with its ``/p2p`` part, ``scheme`` the registry's and ``interval`` that of the checks in seconds.
    ``secondary`` is the node's address of the other family, if any. ``metrics_bound`` is the host that the metrics
    port is bound to, where the agent of this machine asks for it; empty or unspecified for all of the machine's.
    A registry that ``verifies_clients`` can't be asked by the agent, which shows no certificate: its port is checked.
    """
    suffix = node if registry_port == DEFAULT_REGISTRY_PORT else f"{node}:{registry_port}"
    metrics_host = address if metrics_bound in _ALL else metrics_bound
    meta = {"peer_id": peer_id, "version": version, "advertise": address, "router": router_addr}
    if secondary is not None:
        meta |= {"also": secondary}
    ready = HttpCheck(f"{scheme}://{host_port(address, registry_port)}/readyz", interval)
    registry = TcpCheck(host_port(address, registry_port), interval) if verifies_clients else ready
    live = HttpCheck(f"http://{host_port(metrics_host, metrics_port)}/livez", interval, passing=True)
    router = TcpCheck(host_port(address, router_port), interval)
    return Services(
        always=(
            ServiceDefinition(f"{REGISTRY}:{suffix}", REGISTRY, address, registry_port, (registry,), meta=meta),
            ServiceDefinition(f"{ROUTER}:{suffix}", ROUTER, address, router_port, (router, live), meta=meta),
            ServiceDefinition(f"{METRICS}:{suffix}", METRICS, address, metrics_port, (live,), meta=meta),
        ),
        leader=ServiceDefinition(
            f"{LEADER}:{suffix}", LEADER, address, router_port, (TtlCheck(LEADER_CHECK_TTL),), meta=meta
        ),
    )
