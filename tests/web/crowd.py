"""A node in a large cluster, without the cluster: what the page and the commands make of many members and images."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fakes.memory_store import MemoryStore

from spegel_consul.consul.api.client import HealthyService
from spegel_consul.election.election_view import State, View
from spegel_consul.election.leader_record import LeaderRecord
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import Reference
from spegel_consul.peers import PeerInfo, Provider
from spegel_consul.registry.mirror.providers.penalties import Penalties
from spegel_consul.registry.mirror.trace import HIT, Traces
from spegel_consul.ring.member_view import MemberView
from spegel_consul.store import Image
from spegel_consul.store.inventory import StoredImage
from spegel_consul.web.node_views import Consul, Node

NASTY = "<script>document.title = 'owned'</script>"
LONG = "worker-of-the-department-for-very-long-names-" * 3 + "0001.eu-central-1.compute.internal.example"


def name_of(number: int) -> str:
    return {1: NASTY, 2: LONG}.get(number, f"nomad-client-{number:04}")


def address(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"


@dataclass
class Ring:
    """Every 40th member does not answer."""

    others: int
    records: int = 0
    unannounced: int = 0
    warning: str | None = None
    at: float = 0.31
    me: PeerInfo = field(default_factory=lambda: PeerInfo("me", (f"/ip4/{address(0)}/tcp/5001",)))

    def view(self) -> tuple[MemberView, ...]:
        return tuple(
            MemberView(
                f"12D3KooW{number:044}",
                (f"/ip4/{address(number)}/tcp/5001",),
                f"{address(number)}:5000",
                number % 40 != 39,
                0,
                0.0004 * (1 + number % 30),
                float(number % 50),
                number * 7 % 300,
                number * 0.6180339887 % 1,
            )
            for number in range(1, self.others + 1)
        )

    def members(self) -> tuple[PeerInfo, ...]:
        return tuple(PeerInfo(member.id, member.routers) for member in self.view() if member.alive)

    @contextmanager
    def lookup(self, key: str, *, count: int = 3) -> Iterator[AsyncIterator[Provider]]:
        async def found() -> AsyncIterator[Provider]:
            for number in range(1, min(self.others, 12) + 1):
                yield Provider(f"12D3KooW{number:044}", (address(number), 5000))

        yield found()


@dataclass
class Catalog:
    """All members, and two that the ring has never seen."""

    others: int
    problem: str | None = None

    @property
    def members(self) -> tuple[HealthyService, ...]:
        numbers = [*range(1, self.others + 1), self.others + 500, self.others + 501]
        return tuple(
            HealthyService(
                f"spegel-router:{name_of(number)}", "spegel-router", name_of(number), address(number), 5001, (),
                {"peer_id": f"12D3KooW{number:044}", "version": "0.1.0"},
            )
            for number in numbers
        )  # fmt: skip


@dataclass
class Candidate:
    view: View
    problem: str | None = None


@dataclass
class Client:
    answered_at: float | None = None
    renewals: dict[str, int] = field(default_factory=dict)

    async def health_service(self, name: str, **_: object) -> tuple[int, tuple[HealthyService, ...]]:
        return 1, ()


class Store(MemoryStore):
    def __init__(self, images: int) -> None:
        super().__init__()
        self._stored_image = tuple(
            StoredImage(
                Image(
                    f"registry.example.com/team-{number % 9}/service-{number:03}:v1.{number}", Digest.of(b"%d" % number)
                ),
                number << 20,
                3 + number % 20,
            )
            for number in range(images)
        )

    def images(self) -> tuple[Image, ...]:
        return tuple(stored.image for stored in self._stored_image)

    def stored_images(self) -> tuple[StoredImage, ...]:
        return self._stored_image

    def image_contents(self) -> dict[Digest, int]:
        return {stored.image.digest: stored.size for stored in self._stored_image}


def crowd(others: int, images: int = 0, requests: int = 0) -> Node:
    """A node with so many other members, images, and mirrored requests that are over."""
    made = Node(
        name="nomad-client-0000",
        registry=(address(0), 5000),
        metrics_address=(address(0), 9090),
        store_kind="containerd",
        store=Store(images),
        ring=Ring(others),  # type: ignore[arg-type]
        traces=Traces(),
        penalties=Penalties(),
        metrics=Metrics(),
    )
    leader = LeaderRecord(f"12D3KooW{3:044}", (), node=name_of(3))
    view = View(State.FOLLOWER, leader, epoch=7, fresh=True)
    made.consul = Consul(Client(), Candidate(view), Catalog(others), None)  # type: ignore[arg-type]
    for number in range(requests):
        _request(made, number)
    return made


def _request(node: Node, number: int) -> None:
    reference = Reference.parse(f"registry.example.com/team/service-{number % 7}@{Digest.of(b'%d' % number)}")
    with node.traces.begin(reference, reference.key, "blobs", "GET") as trace:
        provider = 1 + number * number % 17
        trace.peer = f"{address(provider)}:5000"
        trace.size = trace.bytes = (number % 23 + 1) << 18
    began = trace.started
    trace.looked_up = trace.asked = began + 0.001 * (number % 3)
    trace.connected = trace.looked_up + 0.002
    trace.first_byte = trace.connected + 0.001 * (1 + number % 4)
    trace.done = trace.first_byte + 0.004 * (1 + number % 23)
    trace.began = time.time() - 3 * number
    assert trace.outcome == HIT
