"""Nodes of two zones that pull one image: what crosses, over real sockets with simulated runtimes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes.memory_router import MemoryRing, MemoryRouter

from spegel_consul.oci.digest import Digest
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.nearness import CrossZone

from .following.growing_source import DownloadingStore
from .test_cold_cluster import FOLLOW, Image, Runtime, Upstream

A, B = Place("dc1", "a"), Place("dc1", "b")
Make = Callable[..., Any]


@pytest.fixture
async def make(start_node: Any, tmp_path: Path, nursery: trio.Nursery) -> Make:
    """Makes the runtimes of a ring, one for each place."""

    async def cluster(places: Sequence[Place], upstream: Upstream, mode: CrossZone = CrossZone.FALLBACK) -> Any:
        ring, runtimes = MemoryRing(), []
        settings: MirrorSettings = replace(FOLLOW, cross_zone=mode)
        for number, place in enumerate(places):
            router = MemoryRouter(ring, registry=("127.0.0.1", 1), here=Here(place))
            await nursery.start(router.run)
            store = DownloadingStore(tmp_path / f"node{number}")
            node = await start_node(settings=settings, store=store, router=router)
            node.mirror.peers.nearness.here.place = place
            router._registry = node.address
            if runtimes:
                await router.join([runtimes[0].node.router.me])
            runtimes.append(Runtime(node, upstream))
        return runtimes

    return cluster


async def has(runtime: Runtime, image: Image) -> None:
    """Give the runtime's node the image, as if it had pulled it before."""
    for each in image.content[1:]:
        runtime.node.store.add_content(each)
    runtime.node.store.add_image("docker.io/library/app:v1", image.manifest)
    await runtime.node.router.announce(list(map(Digest.of, image.content)))


async def pull(runtimes: Sequence[Runtime], image: Image) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for each in runtimes:
                nursery.start_soon(each.pull, image)
    assert all(each.has_all_of(image) for each in runtimes)


def crossed(runtimes: Sequence[Runtime]) -> float:
    return sum(each.node.metric("spegel_received_bytes_total", {"place": "datacenter"}) for each in runtimes)


def size(image: Image) -> int:
    return sum(map(len, image.content))


async def test_an_image_of_the_other_zone_crosses_once(make: Make) -> None:
    """The first of the zone takes it from there, and the others follow that one while it does."""
    upstream, image = Upstream(), Image(1)
    runtimes = await make([A, B, B, B], upstream)
    await has(runtimes[0], image)
    await pull(runtimes[1:], image)
    assert upstream.copies(image) == 0
    assert crossed(runtimes) == size(image)


async def test_an_image_of_both_zones_crosses_nothing(make: Make) -> None:
    upstream, image = Upstream(), Image(1)
    runtimes = await make([A, B, B, B], upstream)
    for each in runtimes[:2]:
        await has(each, image)
    await pull(runtimes[2:], image)
    assert (upstream.copies(image), crossed(runtimes)) == (0, 0)


async def test_a_cold_image_comes_from_upstream_once_and_crosses_once(make: Make) -> None:
    upstream, image = Upstream(), Image(1)
    runtimes = await make([A, B, A, B], upstream)
    await pull(runtimes, image)
    assert upstream.copies(image) == 1.0
    assert crossed(runtimes) <= size(image) * 1.5


async def test_nodes_that_never_cross_ask_upstream_once_for_each_zone(make: Make) -> None:
    upstream, image = Upstream(), Image(1)
    runtimes = await make([A, B, A, B], upstream, CrossZone.NEVER)
    await pull(runtimes, image)
    assert upstream.copies(image) == 2.0
    assert crossed(runtimes) == 0


async def test_nodes_that_never_cross_do_not_take_an_image_of_the_other_zone(make: Make) -> None:
    upstream, image = Upstream(), Image(1)
    runtimes = await make([A, B, B], upstream, CrossZone.NEVER)
    await has(runtimes[0], image)
    await pull(runtimes[1:], image)
    assert (upstream.copies(image), crossed(runtimes)) == (1.0, 0)


async def test_nodes_without_a_place_are_near_for_all(make: Make) -> None:
    """As nodes of an older version, and Go Spegels."""
    upstream, image = Upstream(), Image(1)
    runtimes = await make([NOWHERE, A, B], upstream, CrossZone.NEVER)
    await has(runtimes[0], image)
    await pull(runtimes[1:], image)
    assert upstream.copies(image) == 0
