"""``Node``: the views of one sidecar for people and programs.

The status page, the API and the metrics show the same facts, which are worked out here once. Nothing waits, because all
facts are in memory. A new fact about this node belongs here; a query to other nodes (lookup, measurement) belongs to
:mod:`spegel_consul.web.queries`.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

import trio

from spegel_consul import __version__
from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.consul.api.client import ConsulClient, HealthyService
from spegel_consul.consul.catalog.catalog_watch import CatalogWatch
from spegel_consul.consul.catalog.registration import Registration
from spegel_consul.election.candidate import Candidate
from spegel_consul.election.election_view import State
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.http.peer_tls import Encryption, PeerTls, is_plain_to_own
from spegel_consul.join.keeper import RingKeeper
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.metrics.traffic_history import TrafficHistory
from spegel_consul.peers import host_port
from spegel_consul.places import NOWHERE, Place
from spegel_consul.registry.mirror.followers import Followers
from spegel_consul.registry.mirror.following.follows import Follows
from spegel_consul.registry.mirror.providers.nearness import Nearness
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.trace import Traces
from spegel_consul.registry.uploads import Uploads
from spegel_consul.runtimes.pulls import Runtimes
from spegel_consul.store.inventory import CountedStore
from spegel_consul.web.cluster_members import ClusterMembers, Ring
from spegel_consul.zerocopy.encrypted.kernel_tls import KERNEL

Document = dict[str, Any]
"""A JSON object of the API."""


@dataclass(frozen=True, slots=True)
class Consul:
    """This node's parts in Consul; None for a part that the settings leave out."""

    client: ConsulClient
    candidate: Candidate | None
    catalog: CatalogWatch | None
    registration: Registration | None
    registries: CatalogWatch | None = None

    @property
    def members(self) -> tuple[HealthyService, ...]:
        """The healthy routers in the catalog; empty if the catalog is not watched."""
        return self.catalog.members if self.catalog is not None else ()

    def problems(self) -> list[str]:
        """Problems of the parts, each once."""
        parts = (self.candidate, self.catalog, self.registration, self.registries)
        found = [part.problem for part in parts if part is not None and part.problem is not None]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class PreheatRules:
    """The preheats that this node takes part in.

    ``accepts``: whether an image of this name takes part in the mirror; ``catalog_only``: whether a peer without the
    password has to be in Consul's catalog, because a member of the ring is not trusted (``--peer-policy``).
    """

    runtimes: Runtimes
    accepts: Callable[[str], bool]
    catalog_only: bool


@dataclass(slots=True)
class Node:
    """``registry`` and ``metrics_address`` are the advertised ``(IP address, port)``.

    ``keeper``, ``consul`` and ``nomad_candidate`` are set when they start, and are None until then.
    """

    name: str
    registry: tuple[str, int]
    metrics_address: tuple[str, int]
    store_kind: str
    store: CountedStore
    ring: Ring
    traces: Traces
    penalties: Penalties
    metrics: Metrics
    tls: PeerTls | None = None
    credentials: Credentials | None = None
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call the metrics port; see :class:`spegel_consul.web.access.own_names.OwnNames`."""
    preheat: PreheatRules | None = None
    """None: this node takes no part in preheats."""
    address_problem: Callable[[], str | None] = lambda: None
    """Why peers can't reach this node at the address that it advertises."""
    keeper: RingKeeper | None = None
    consul: Consul | None = None
    nomad_candidate: Candidate | None = None
    """This node's part in the election by the lock on a Nomad variable, if that is its first kind that elects."""
    followers: Followers = field(default_factory=Followers)
    uploads: Uploads = field(default_factory=Uploads)
    follows: Follows | None = None
    """The groups that this node is at work on; None if following is off."""
    nearness: Nearness | None = None
    started: float = field(default_factory=time.monotonic)
    """By a clock that nobody sets, in seconds."""
    told_names: BoundedDict[str, str] = field(default_factory=lambda: BoundedDict(4096))
    """Names by peer id that nodes said of themselves; those of the catalog override them."""
    history: TrafficHistory = field(init=False)

    def __post_init__(self) -> None:
        self.history = TrafficHistory(self.metrics)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def place(self) -> Place:
        """The place of this node."""
        return self.nearness.here.place if self.nearness is not None else NOWHERE

    @property
    def candidate(self) -> Candidate | None:
        """This node's part in the election; None without one."""
        return self.nomad_candidate or (self.consul.candidate if self.consul is not None else None)

    def catalog_names(self) -> set[str]:
        """Names of the nodes in the catalog."""
        return {service.node for service in self.consul.members} if self.consul is not None else set()

    def problem(self) -> str | None:
        """The reason why this node can't serve its content, in one line; None if it can.

        The store and the address decide, because serving needs neither Consul nor a peer.
        """
        return self.store.problem or self.address_problem()

    def warnings(self, cluster_members: ClusterMembers | None = None) -> tuple[str, ...]:
        """Problems for an operator that do not keep this node from serving; one line each."""
        found = [*self.store.warnings, *filter(None, [self.ring.warning])]
        if self.tls is not None:
            found += [*filter(None, [self.tls.problem]), *self.tls.links.problems()]
        if self.keeper is not None and self.keeper.last_error is not None:
            found.append(f"alone in the ring: {self.keeper.last_error}")
        if self.keeper is not None and self.keeper.flapping:
            found.append("the leader changes so often that its changes are not followed for a while")
        hindered = self.nomad_candidate.problem if self.nomad_candidate is not None else None
        if hindered is not None and not any(hindered in each for each in found):
            found.append(hindered)
        if self.consul is not None:
            found += self.consul.problems()
            cluster_members = cluster_members or self.cluster_members()
            if missing := cluster_members.missing:
                names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
                found.append(f"the ring lacks {len(missing)} of {cluster_members.catalog} healthy routers: {names}")
        failures = self.metrics.verification_failures.value
        if failures:
            found.append(f"{failures:.0f} answers of peers had wrong bytes; the log names the peers")
        return tuple(found)

    def cluster_members(self) -> ClusterMembers:
        """The members of the cluster as known now. Methods that take one make their own without it."""
        consul = self.consul
        leader = self.candidate.view.leader if self.candidate is not None else None
        services = consul.members if consul is not None else ()
        registry, view = host_port(*self.registry), self.ring.view()
        return ClusterMembers(self.name, self.ring.me, registry, view, services, leader, self.told_names)

    def status(self, cluster_members: ClusterMembers | None = None) -> Document:
        """A summary of this node; times in seconds, unless their names end otherwise."""
        problem, cluster_members = self.problem(), cluster_members or self.cluster_members()
        return {
            "node": {
                "name": self.name,
                "version": __version__,
                "peer_id": self.ring.me.id,
                "registry": f"{'http' if is_plain_to_own(self.tls) else 'https'}://{host_port(*self.registry)}",
                "metrics": f"http://{host_port(*self.metrics_address)}",
                "router": list(self.ring.me.addrs),
                "place": str(self.place) or None,
                "store": self.store_kind,
                "uptime": round(self.uptime, 1),
                "pid": os.getpid(),
                "python": platform.python_version(),
            },
            "ready": problem is None,
            "reasons": [problem] if problem is not None else [],
            "warnings": list(self.warnings(cluster_members)),
            "peer_tls": self._peer_tls(),
            "leader": self.leader(),
            "ring": self._ring(cluster_members),
            "content": self._content(),
            "mirror": self._mirror(),
            "uploads": self.uploads.to_json(),
            "consul": self._consul(),
            "transfers": self.transfers(cluster_members),
            "following": self.following(cluster_members),
            "followers": self.being_followed(cluster_members),
        }

    def leader(self) -> Document | None:
        """The leader by the lock, as far as known; None without an election."""
        if self.candidate is None:
            return None
        view = self.candidate.view
        found = view.leader
        return {
            "state": view.state.value,
            "fresh": view.fresh,
            "epoch": view.epoch,
            "node": found.node if found else None,
            "peer_id": found.peer_id if found else None,
            "since": found.since if found else None,
            "me": view.state is State.LEADER,
        }

    def peers(self, cluster_members: ClusterMembers | None = None) -> list[Document]:
        """This node and all others in the ring or the catalog, in order of names."""
        place = str(self.place) or None
        found = (cluster_members or self.cluster_members()).peers(self.ring.at, len(self.store.keys()), place)
        return [{**peer, "encrypted": self._is_encrypted(peer)} for peer in found]

    def _is_encrypted(self, peer: Document) -> bool | None:
        """Whether the last connection from or to a peer was encrypted; None if there was none, and for this node."""
        registry = peer["registry"]
        if registry is None or peer["state"] == "self":
            return None
        if self.tls is None:
            return False
        if self.tls.encryption is Encryption.ALL:
            return True
        return self.tls.links.encrypted(registry.rpartition(":")[0].strip("[]"))

    def _peer_tls(self) -> Document | None:
        """The encryption between nodes; None without any."""
        if self.tls is None:
            return None
        mode, kernel = self.tls.encryption.value, KERNEL.encrypted
        return {"mode": mode, "expires": self.tls.expires, "problem": self.tls.problem, "kernel": kernel}

    def images(self) -> list[Document]:
        """The images of which this node has all content."""
        return [
            {
                "name": stored.image.name,
                "digest": stored.image.digest,
                "size": stored.size,
                "parts": stored.parts,
            }
            for stored in self.store.stored_images()
        ]

    def transfers(self, cluster_members: ClusterMembers | None = None) -> list[Document]:
        """Requests that are being looked up or streamed now, the oldest first."""
        return self._named(list(self.traces.live.values()), cluster_members)

    def requests(self, cluster_members: ClusterMembers | None = None) -> list[Document]:
        """The last requests that were looked up at peers, the newest first."""
        return self._named(list(reversed(self.traces.over)), cluster_members)

    def following(self, cluster_members: ClusterMembers | None = None) -> list[Document]:
        """The groups that this node is at work on: the content of one manifest each, which is downloaded or followed.

        ``have`` and ``size`` are bytes, as of the last report to the keeper; ``since`` is a Unix time. ``left`` is the
        last source that was left, and ``left_why`` the reason.
        """
        if self.follows is None or not self.follows.active:
            return []
        now, names = time.time(), (cluster_members or self.cluster_members()).registries()
        found = []
        for active in self.follows.active:
            claim, history = active.claim, active.claim.history
            source, left = claim.source, history.left
            at = host_port(*source.registry) if source is not None else None
            left_at = host_port(*left.source.registry) if left is not None else None
            found.append(
                {
                    "image": history.image or None,
                    "group": claim.group,
                    "role": claim.role or None,
                    "working": claim.working,
                    "source": at,
                    "source_node": names.get(at) if at is not None else None,
                    "have": claim.have,
                    "size": self.follows.size(claim.group),
                    "bytes_followed": history.received,
                    "since": round(now - claim.age, 1),
                    "left": left_at,
                    "left_node": names.get(left_at) if left_at is not None else None,
                    "left_why": left.why if left is not None else None,
                }
            )
        return found

    def being_followed(self, cluster_members: ClusterMembers | None = None) -> list[Document]:
        """The bodies that peers are sent while this node downloads them, or waits to; the oldest first.

        ``peer`` is the peer id that the follower gave. ``total`` is None until the first byte is there; ``lag`` is the
        number of bytes that are there and were not sent.
        """
        sends = self.followers.live()
        if not sends:
            return []
        names = (cluster_members or self.cluster_members()).names
        found = []
        for send in sends:
            digest = send.request.reference.digest
            assert digest is not None
            found.append(
                {
                    "peer": send.peer,
                    "peer_node": names.get(send.peer),
                    "group": self.follows.groups.known(digest) if self.follows is not None else digest,
                    "reference": str(send.request.reference),
                    "kind": send.request.kind.value,
                    "digest": digest,
                    "sent": send.sent,
                    "total": send.total or None,
                    "lag": send.lag,
                    "behind": send.behind,
                }
            )
        return found

    def _named(self, traces: Sequence[Any], cluster_members: ClusterMembers | None) -> list[Document]:
        if not traces:
            return []
        now, names = time.perf_counter(), (cluster_members or self.cluster_members()).registries()
        found = [trace.to_json(now) for trace in traces]
        return [{**document, "peer_node": names.get(str(document["peer"]))} for document in found]

    def _ring(self, cluster_members: ClusterMembers) -> Document:
        missing, catalog = cluster_members.missing, cluster_members.catalog
        return {
            "members": sum(member.alive for member in cluster_members.view),
            "dead": sum(not member.alive for member in cluster_members.view),
            "catalog": catalog if self.consul is not None and self.consul.catalog is not None else None,
            "missing": missing,
            "coverage": round(1 - len(missing) / catalog, 4) if catalog else None,
            "split": bool(missing),
            "rejoins": self.keeper.rejoins if self.keeper is not None else 0,
            "restarts": self.keeper.restarts if self.keeper is not None else 0,
            "splits": self.keeper.splits if self.keeper is not None else 0,
            "records": self.ring.records,
            "unannounced": self.ring.unannounced,
        }

    def _content(self) -> Document:
        return {
            "images": len(self.store.images()),
            "bytes": sum(self.store.image_contents().values()),
            "keys": len(self.store.keys()),
        }

    def _mirror(self) -> Document:
        metrics = self.metrics
        hits, misses = metrics.mirrored()
        self.history.note(trio.current_time())
        day, last = self.history.day(), metrics.mirror_last_success.value
        return {
            "hits": int(hits),
            "misses": int(misses),
            "hit_ratio": round(hits / (hits + misses), 4) if hits + misses else None,
            "last_success": last or None,
            "bytes_from_peers": int(metrics.served_bytes.labels("peer").value),
            "bytes_by_place": self.nearness.bytes_by_place() if self.nearness is not None else {},
            "bytes_crossed": self.nearness.crossed if self.nearness is not None else 0,
            "bytes_followed": int(metrics.followed_bytes.value),
            "follow": self.follows is not None,
            "bytes_own": int(metrics.served_bytes.labels("own").value),
            "verification_failures": int(metrics.verification_failures.value),
            "cut": int(metrics.transfers_cut.value),
            "stalls": self.penalties.stalls,
            "day": day.to_json(),
            "busy": int(metrics.busy_peers.value),
        }

    def _consul(self) -> Document | None:
        if self.consul is None:
            return None
        answered = self.consul.client.answered_at
        return {
            "staleness": round(trio.current_time() - answered, 1) if answered is not None else None,
            "renewals": dict(self.consul.client.renewals),
            "problems": self.consul.problems(),
        }
