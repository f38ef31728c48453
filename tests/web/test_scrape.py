"""The cost of a scrape on a node with many images in a large ring: it stops the event loop, again and again."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from fakes.memory_store import MemoryStore
from prometheus_client import generate_latest
from web.test_copies import image
from web.test_node import Ring, node

from spegel_consul.oci.digest import Digest
from spegel_consul.peers import PeerInfo
from spegel_consul.ring.member_view import MemberView
from spegel_consul.store import inventory
from spegel_consul.store.index import Index
from spegel_consul.web.metric_readings import connect

APP, BASE = "docker.io/library/app:v1", "ghcr.io/team/base:v1"


@dataclass
class CountingRing(Ring):
    """``known``: the living members, as a router keeps them until one comes or goes."""

    views: int = 0
    known: tuple[PeerInfo, ...] = field(default_factory=lambda: Ring().members())

    def view(self) -> tuple[MemberView, ...]:
        self.views += 1
        return super().view()

    def members(self) -> tuple[PeerInfo, ...]:
        return self.known


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[Digest]:
    """The blobs whose origins were asked for."""
    found: list[Digest] = []
    origins = Index.origins

    def counted(index: Index, digest: Digest) -> tuple[str, ...]:
        found.append(digest)
        return origins(index, digest)

    monkeypatch.setattr(Index, "origins", counted)
    return found


async def test_the_blobs_are_counted_once_until_the_store_changes(walked: list[Digest]) -> None:
    made = node("10.0.0.1", "10.0.0.2")
    assert isinstance(made.store, MemoryStore)
    image(made.store, APP)
    connect(made)
    for _ in range(2):
        shown = generate_latest(made.metrics.registry).decode()
        assert len(walked) == 2, "a config and a manifest"
        assert 'spegel_advertised_content_digests{registry="docker.io"} 2.0' in shown
    image(made.store, BASE)
    shown = generate_latest(made.metrics.registry).decode()
    assert 'spegel_advertised_content_digests{registry="ghcr.io"} 2.0' in shown
    assert 'spegel_advertised_image_tags{registry="ghcr.io"} 1.0' in shown


def test_figures_of_a_store_are_those_of_its_index_after_each_change() -> None:
    store = MemoryStore()

    def agrees() -> bool:
        index = store._index
        return (store.stored_images(), store.image_contents(), store.advertised()) == (
            inventory.stored_images(index),
            inventory.image_contents(index),
            inventory.advertised(index),
        )

    assert agrees()
    digest = Digest(image(store, APP))
    assert agrees()
    image(store, BASE)
    assert agrees()
    store.remove_image(BASE)
    assert agrees()
    store.remove_content(digest)
    assert agrees()
    assert store.stored_images() == ()


async def test_the_ring_and_the_catalog_are_compared_once_until_one_changes() -> None:
    made = node("10.0.0.1", "10.0.0.2", "10.0.0.3")
    made.ring = ring = CountingRing()
    connect(made)
    # a catalog keeps its list until it changes, and two metrics are about the routers that the ring lacks
    for _ in range(2):
        shown = generate_latest(made.metrics.registry).decode()
        assert "spegel_ring_members 1.0" in shown
        assert "spegel_ring_missing 1.0" in shown
        assert "spegel_ring_split 1.0" in shown
    assert ring.views == 1
    ring.known = ()
    generate_latest(made.metrics.registry)
    assert ring.views == 2
