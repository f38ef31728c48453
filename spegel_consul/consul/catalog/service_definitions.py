"""This node's services, as they are registered in the catalog.

There are three services with one port each, because DNS answers a name with all its instances: ``spegel`` is the
registry and only the registry, so that ``spegel.service.consul:5000`` is right for every answer.  The agent runs the
checks, so a node that stops answering leaves DNS after one interval.  The router has two checks, because a process that
hangs still has an open port.  A fourth service, ``spegel-leader``, is registered only by the node that has the lock
(``leader_service``).

Several clusters may share a Consul.  Then each has a leader key of its own, which its services carry in their metadata.
A service without one may be of any cluster, because the jobs of Nomad, the configurations of agents and older versions
register none.

Ids are stable over restarts (``spegel:<node>``), so that a restart replaces an instance and never adds a second one.

A new service, check or field of the metadata belongs here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import ClassVar

from spegel_consul.consul.api.client import AgentService, HealthyService
from spegel_consul.consul.api.duration import format_duration
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import host_port
from spegel_consul.places import NOWHERE, Place

REGISTRY, ROUTER, METRICS, LEADER = "spegel", "spegel-router", "spegel-metrics", "spegel-leader"
DEFAULT_REGISTRY_PORT = 5000
LEADER_CHECK_TTL = 3.0
"""Seconds after which the check of a leader that hangs or was killed fails.

With the lock-delay of half a second another node leads within four seconds.  It is not shorter, because an agent that
restarts keeps the state of the check only for that time, rounded down to whole seconds.
"""


class ServiceMode(enum.Enum):
    """The registrant: Nomad's job or else this process, this process, another program, none."""

    AUTO = "auto"
    SELF = "self"
    EXTERNAL = "external"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """The agent asks for ``url`` every ``interval`` seconds; 2xx passes, 429 warns. Certificates are not verified.

    ``passing``: whether the check passes before the first answer.
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

    The check passes before the first connection, because a port is open before it is registered.
    """

    address: str
    interval: float = 2.0
    passing: ClassVar[bool] = True
    kind: ClassVar[str] = "tcp"

    def to_json(self) -> dict[str, object]:
        """What is particular to this kind."""
        return {"TCP": self.address, **_times(self.interval)}


@dataclass(frozen=True, slots=True)
class TtlCheck:
    """Passes for ``ttl`` seconds after each report. An agent that restarts within that time keeps its state."""

    ttl: float
    passing: ClassVar[bool] = True
    kind: ClassVar[str] = "ttl"

    def to_json(self) -> dict[str, object]:
        """What is particular to this kind."""
        return {"TTL": format_duration(self.ttl)}


def _times(interval: float) -> dict[str, object]:
    return {"Interval": format_duration(interval), "Timeout": format_duration(max(interval, 1.0))}


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """One service of this node. ``address`` is an IP address, because a name would become a CNAME in DNS.

    ``weights``: the weights of SRV answers for an instance that passes, and for one that warns. There is at most one
    check of each kind.
    """

    id: str
    name: str
    address: str
    port: int
    checks: tuple[HttpCheck | TcpCheck | TtlCheck, ...]
    tags: ClassVar[tuple[str, ...]] = ()
    meta: Mapping[str, str] = field(default_factory=dict, hash=False)
    weights: ClassVar[tuple[int, int]] = (10, 1)

    def check_id(self, kind: str) -> str:
        """The id of the check of this kind, for sessions that are bound to it."""
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
            # removes the entry of a node that never returns; a live node registers again
            "DeregisterCriticalServiceAfter": "5m",
            **({"Status": "passing"} if check.passing else {}),
            **check.to_json(),
        }

    def matches(self, present: AgentService | None) -> bool:
        """Whether the agent's service ``present`` has the fields of this definition."""
        return present is not None and (
            (present.name, present.address, present.port, set(present.tags), dict(present.meta), present.weights)
            == (self.name, self.address, self.port, set(self.tags), dict(self.meta), self.weights)
        )


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one node: ``always``, and ``leader`` while it leads."""

    always: tuple[ServiceDefinition, ...]
    leader: ServiceDefinition


def place_meta(place: Place) -> dict[str, str]:
    """The metadata for a place: ``place`` as a whole, and ``zone``, by which prepared queries can filter."""
    return {name: text for name, text in (("place", str(place)), ("zone", place.zone)) if text}


def of_cluster(services: Iterable[HealthyService], leader_key: str | None) -> tuple[HealthyService, ...]:
    """Those of ``services`` that may be of the cluster with this leader key; all of them for None."""
    return tuple(
        each for each in services if leader_key is None or each.meta.get("leader_key") in (None, "", leader_key)
    )


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
    place: Place = NOWHERE,
    leader_key: str | None = None,
) -> Services:
    """The registry, router and metrics services of one node, in this order, and the service of the leader.

    ``node`` must be stable, and unique among the sidecars of one agent with the same registry port; a port other than
    5000 becomes part of the ids. ``address`` is the advertised IP address, ``router_addr`` the router's multiaddr with
    its ``/p2p`` part, ``scheme`` the scheme of the registry, and ``interval`` the seconds between two checks.
    ``secondary`` is the node's address of the other family, if any. ``metrics_bound`` is the host that the metrics port
    is bound to, at which the agent of this machine asks; empty or unspecified for all addresses. If the registry
    ``verifies_clients``, only its port is checked, because the agent has no client certificate. ``place`` is the
    node's, as far as it is known. ``leader_key`` is the one of the cluster.
    """
    suffix = node if registry_port == DEFAULT_REGISTRY_PORT else f"{node}:{registry_port}"
    metrics_host = address if metrics_bound in _ALL else metrics_bound
    meta = {"node": node, "peer_id": peer_id, "version": version, "advertise": address, "router": router_addr}
    if secondary is not None:
        meta |= {"also": secondary}
    meta |= place_meta(place)
    if leader_key is not None:
        meta |= {"leader_key": leader_key}
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
