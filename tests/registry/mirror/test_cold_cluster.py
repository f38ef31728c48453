"""Nodes that pull an image at the same time that none of them has: both sides of following, over real sockets.

The runtimes are simulated: each makes the file of a download before it asks its mirror, appends what comes, resumes at
upstream what was cut, and asks for the layers of an image at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from fakes.memory_router import MemoryRing, MemoryRouter

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from .following.growing_source import DownloadingStore

FOLLOW = MirrorSettings(follow=True, verify_first=0)


class Image:
    def __init__(self, number: int, base: Sequence[bytes] = ()) -> None:
        self.config = json.dumps({"number": number}).encode()
        self.layers = [*base, *(bytes([number, place]) * 500_000 for place in (1, 2))]
        self.manifest = json.dumps(
            {
                "mediaType": OCI_MANIFEST,
                "config": {"digest": Digest.of(self.config), "size": len(self.config)},
                "layers": [{"digest": Digest.of(each), "size": len(each)} for each in self.layers],
            }
        ).encode()

    @property
    def content(self) -> list[bytes]:
        return [self.manifest, self.config, *self.layers]


@dataclass
class Upstream:
    """Gives 100 kB each ``pause`` seconds to each that asks."""

    pause: float = 0.02
    gave: dict[bytes, int] = field(default_factory=dict)

    async def take(self, content: bytes, start: int) -> Any:
        for at in range(start, len(content), 100_000):
            await trio.sleep(self.pause)
            piece = content[at : at + 100_000]
            self.gave[content] = self.gave.get(content, 0) + len(piece)
            yield piece

    def copies(self, image: Image) -> float:
        return sum(self.gave.get(each, 0) for each in image.layers) / sum(map(len, image.layers))


class Runtime:
    """The runtime of one node."""

    def __init__(self, node: Any, upstream: Upstream) -> None:
        self.node = node
        self.upstream = upstream
        self._pulls: list[trio.CancelScope] = []
        self.has: set[Digest] = set()

    def die(self) -> None:
        """Stop where it is; its downloads stay as they are."""
        for each in self._pulls:
            each.cancel()

    async def pull(self, image: Image) -> None:
        with trio.CancelScope() as pull:
            self._pulls.append(pull)
            await self._get(image.manifest, "manifests")
            async with trio.open_nursery() as nursery:
                for each in (image.config, *image.layers):
                    nursery.start_soon(self._get, each, "blobs")

    async def _get(self, content: bytes, kind: str) -> None:
        store, digest = self.node.store, Digest.of(content)
        path = store.download(content)
        received = b""
        with path.open("ab", buffering=0) as file:
            async with httpx.AsyncClient(verify=False, base_url=self.node.url, trust_env=False, timeout=60) as client:
                for _ in range(2):  # the mirror is asked again when it has cut, and then upstream
                    fields = {"range": f"bytes={len(received)}-"} if received else {}
                    try:
                        url = f"/v2/library/app/{kind}/{digest}?ns=docker.io"
                        async with client.stream("GET", url, headers=fields) as response:
                            if response.status_code >= 300:
                                break
                            async for piece in response.aiter_raw():
                                received += piece
                                file.write(piece)
                        break
                    except httpx.RemoteProtocolError:
                        pass
            if len(received) < len(content):
                async for piece in self.upstream.take(content, len(received)):
                    received += piece
                    file.write(piece)
        assert received == content
        self.has.add(digest)

    def has_all_of(self, image: Image) -> bool:
        return {Digest.of(each) for each in image.content} <= self.has


@pytest.fixture
async def cluster(start_node: Any, tmp_path: Path, nursery: trio.Nursery) -> tuple[list[Runtime], Upstream]:
    """Four nodes."""
    ring, upstream, runtimes = MemoryRing(), Upstream(), []
    first: MemoryRouter | None = None
    for number in range(4):
        router = MemoryRouter(ring, registry=("127.0.0.1", 1))
        await nursery.start(router.run)
        node = await start_node(settings=FOLLOW, store=DownloadingStore(tmp_path / f"node{number}"), router=router)
        router._registry = node.address
        if first is not None:
            await router.join([first.me])
        first = first or router
        runtimes.append(Runtime(node, upstream))
    return runtimes, upstream


async def test_upstream_is_asked_once(cluster: Any) -> None:
    runtimes, upstream = cluster
    image = Image(1)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for each in runtimes:
                nursery.start_soon(each.pull, image)
    assert all(each.has_all_of(image) for each in runtimes)
    assert upstream.copies(image) == 1.0
    followed = sum(each.node.metric("spegel_followed_bytes_total") for each in runtimes)
    assert followed >= 3 * sum(map(len, image.layers))


async def test_two_images_are_pulled_crosswise(cluster: Any) -> None:
    runtimes, upstream = cluster
    images = [Image(1), Image(2)]
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number, each in enumerate(runtimes):
                for image in images if number % 2 else reversed(images):
                    nursery.start_soon(each.pull, image)
    assert all(each.has_all_of(image) for each in runtimes for image in images)
    assert [upstream.copies(image) for image in images] == [1.0, 1.0]


@pytest.mark.parametrize("stops", ["node", "runtime"])
async def test_the_others_go_on_when_the_claimer_stops(cluster: Any, stops: str) -> None:
    runtimes, upstream = cluster
    image = Image(1)
    upstream.pause = 0.1
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(runtimes[0].pull, image)
            while not upstream.copies(image):
                await trio.sleep(0.01)
            for each in runtimes[1:]:
                nursery.start_soon(each.pull, image)
            while upstream.copies(image) < 0.4:
                await trio.sleep(0.01)
            runtimes[0].die()
            if stops == "node":
                runtimes[0].node.stop.set()
    assert all(each.has_all_of(image) for each in runtimes[1:])
    assert upstream.copies(image) <= 2.0
