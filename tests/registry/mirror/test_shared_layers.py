"""Nodes that pull two images with common layers at the same time, in different orders, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spegel_consul.oci.digest import Digest

from .test_cold_cluster import Image, Runtime, Upstream, cluster

__all__ = ["cluster"]

SLOTS = 3  # layers of one image that a runtime downloads at a time (containerd's max_concurrent_downloads)
BASE = [bytes([9, number]) * 500_000 for number in range(2 * SLOTS)]


class SlottedRuntime(Runtime):
    """A runtime that downloads each content once, and few layers of an image at a time."""

    def __init__(self, node: Any, upstream: Upstream) -> None:
        super().__init__(node, upstream)
        self._locks: dict[Digest, trio.Lock] = {}

    async def _get(self, content: bytes, kind: str) -> None:
        digest = Digest.of(content)
        async with self._locks.setdefault(digest, trio.Lock()):
            if digest not in self.has:
                await super()._get(content, kind)
                self.node.store.commit(content)

    async def pull(self, image: Image) -> None:
        slots = trio.Semaphore(SLOTS)

        async def layer(content: bytes) -> None:
            async with slots:
                await self._get(content, "blobs")

        await self._get(image.manifest, "manifests")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._get, image.config, "blobs")
            for each in image.layers:
                nursery.start_soon(layer, each)
                await trio.sleep(0.001)  # the runtime's queue is in order


@pytest.mark.parametrize("apart", [0.03, 0.2])
@pytest.mark.parametrize("turned", [False, True])
async def test_nodes_of_two_images_do_not_wait_for_each_other(cluster: Any, apart: float, turned: bool) -> None:
    nodes, upstream = cluster
    upstream.pause = 0.05
    runtimes = [SlottedRuntime(each.node, upstream) for each in nodes]
    images = [Image(1, BASE), Image(2, BASE)]
    if turned:
        images.reverse()
    with trio.fail_after(12):
        async with trio.open_nursery() as nursery:
            for place in (0, 1):
                for number, each in enumerate(runtimes):
                    nursery.start_soon(each.pull, images[(number + place) % 2])
                await trio.sleep(apart)
    assert all(each.has_all_of(image) for each in runtimes for image in images)
    # the first layers may be asked for before a node knows of the other image
    assert [upstream.gave[each] / len(each) for each in BASE[SLOTS:]] == [1.0] * SLOTS
    assert all(upstream.gave[each] <= 2 * len(each) for each in BASE)
