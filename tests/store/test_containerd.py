from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import trio
from conformance.downloads import MIB, content, opened
from conformance.store import SampleImage, StoreSuite, eventually, read_all, running, sample_image
from lab.process import HANG
from store.daemon import Containerd, Upstream
from structlog.testing import capture_logs
from structlog.typing import EventDict

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import OCI_INDEX, OCI_MANIFEST
from spegel_consul.runtimes.containerd_sockets import SocketSearch
from spegel_consul.store import Store
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.store.index import Index, Snapshot

pytestmark = pytest.mark.real

_serial = count(1)

NOWHERE = Path("/nonexistent/content")


class ContainerdShelf:
    def __init__(self, daemon: Containerd, content_path: Path | None = None) -> None:
        self.daemon = daemon
        self.namespace = f"test{next(_serial)}"
        self.content_path = content_path
        self.relist_interval = 0.2
        self.socket: Callable[[], Path] = lambda: daemon.socket

    def store(self, accept: Callable[[str], bool] = lambda name: True) -> Store:
        return ContainerdStore(
            lambda: self.socket(), self.namespace, self.content_path, accept, relist_interval=self.relist_interval
        )

    def elsewhere(self) -> Store:
        """A store of another namespace of the same containerd."""
        return ContainerdStore(lambda: self.socket(), "elsewhere", self.daemon.content)

    async def add(self, *images: SampleImage) -> None:
        await trio.to_thread.run_sync(self.daemon.load, self.namespace, *images)

    async def remove(self, image: SampleImage) -> None:
        await self.ctr("images", "rm", "--sync", image.name)

    async def lose(self, digest: Digest) -> None:
        await self.ctr("content", "rm", digest)

    async def ctr(self, *arguments: str) -> str:
        return await trio.to_thread.run_sync(self.daemon.ctr, self.namespace, *arguments)


class TestContainerdStore(StoreSuite):
    @pytest.fixture
    def shelf(self, containerd: Containerd) -> ContainerdShelf:
        return ContainerdShelf(containerd)


@pytest.mark.parametrize("containerd", ["2.1"], indirect=True)
class TestContainerdStoreWithoutItsDirectory(StoreSuite):
    @pytest.fixture
    def shelf(self, containerd: Containerd) -> ContainerdShelf:
        return ContainerdShelf(containerd, NOWHERE)


@pytest.fixture
def shelf(containerd: Containerd) -> ContainerdShelf:
    return ContainerdShelf(containerd)


def levels(logs: list[EventDict]) -> list[str]:
    return [entry["log_level"] for entry in logs if entry["log_level"] != "debug"]


async def test_a_containerd_that_comes_later_and_elsewhere(own_containerd: Containerd) -> None:
    shelf = ContainerdShelf(own_containerd)
    shelf.socket = SocketSearch([Path("/nonexistent/c.sock"), own_containerd.socket]).look
    image = sample_image()
    async with running(shelf.store()) as store:
        assert "/nonexistent/c.sock does not exist" in (store.problem or "")
        await trio.to_thread.run_sync(own_containerd.start)
        await shelf.add(image)
        await eventually(lambda: store.problem is None and store.resolve(image.name) == image.root)


async def test_restart_under_the_store(own_containerd: Containerd) -> None:
    shelf = ContainerdShelf(own_containerd)
    shelf.daemon.start()
    image, later = sample_image(), sample_image()
    await shelf.add(image)
    async with running(shelf.store()) as store:
        with capture_logs() as logs:
            await trio.to_thread.run_sync(shelf.daemon.stop)
            await eventually(lambda: store.problem)
            assert str(shelf.daemon.socket) in (store.problem or "")
            assert "\n" not in (store.problem or "")
            assert store.resolve(image.name) == image.root
            async with store.open(image.layers[0]) as blob:
                assert await read_all(blob) == image.blobs[image.layers[0]]
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(shelf.daemon.start)
            began = time.monotonic()
            await eventually(lambda: store.problem is None)
            print(f"containerd {shelf.daemon.version}: back {time.monotonic() - began:.2f} s after it listens")
            await shelf.add(later)
            await eventually(lambda: store.resolve(later.name))
        assert levels(logs) == ["warning", "info"]


async def test_crash_under_the_store_without_its_directory(own_containerd: Containerd) -> None:
    shelf = ContainerdShelf(own_containerd, NOWHERE)
    shelf.daemon.start()
    image = sample_image()
    await shelf.add(image)
    async with running(shelf.store()) as store:
        async with store.open(image.layers[0]) as blob:
            shelf.daemon.kill()
            await trio.to_thread.run_sync(shelf.daemon.stop)
            with pytest.raises(BlobUnknown):
                await read_all(blob)
        with pytest.raises(BlobUnknown):
            async with store.open(image.layers[0]):
                pass
        assert {image.layers[0]} <= store.keys(), "what nobody can tell about is not forgotten"
        await trio.to_thread.run_sync(shelf.daemon.start)
        await eventually(lambda: store.problem is None)
        async with store.open(image.layers[0]) as blob:
            assert await read_all(blob) == image.blobs[image.layers[0]]


async def test_containerd_that_comes_later(own_containerd: Containerd) -> None:
    shelf = ContainerdShelf(own_containerd)
    with capture_logs() as logs:
        async with running(shelf.store()) as store:
            assert f"{shelf.daemon.socket} does not exist" in (store.problem or "")
            assert store.keys() == frozenset()
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(shelf.daemon.start)
            await eventually(lambda: store.problem is None)
            image = sample_image()
            await shelf.add(image)
            await eventually(lambda: store.resolve(image.name))
    # away, no such namespace yet, here
    assert levels(logs) == ["warning", "warning", "info"]


async def test_namespace_that_does_not_exist_is_empty(shelf: ContainerdShelf) -> None:
    with capture_logs() as logs:
        async with running(shelf.store()) as store:
            assert store.problem is None
            assert store.keys() == frozenset()
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert warning["namespace"] == shelf.namespace
    assert "namespace" in warning["event"]


@pytest.mark.parametrize("containerd", ["2.1"], indirect=True)
async def test_unforeseen_mistake_costs_a_listing(shelf: ContainerdShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    image = sample_image()
    await shelf.add(image)
    broken = True
    apply = Index.apply

    def apply_or_fail(index: Index, snapshot: Snapshot) -> None:
        if broken:
            raise RuntimeError("unforeseen")
        apply(index, snapshot)

    monkeypatch.setattr(Index, "apply", apply_or_fail)
    with capture_logs() as logs:
        async with running(shelf.store()) as store:
            assert "unexpectedly" in (store.problem or "")
            broken = False
            await eventually(lambda: store.resolve(image.name))
            await eventually(lambda: store.problem is None)
    assert any(entry.get("exc_info") for entry in logs)


@pytest.mark.parametrize("containerd", ["2.1"], indirect=True)
async def test_invalid_namespace_is_told(shelf: ContainerdShelf) -> None:
    shelf.namespace = "no namespace"
    async with running(shelf.store()) as store:
        assert str(shelf.daemon.socket) in (store.problem or "")
        assert "no namespace" in (store.problem or "")


async def test_pull_under_way_is_served(shelf: ContainerdShelf, upstream: type[Upstream]) -> None:
    image = sample_image()
    server = upstream(image)
    server.gate.clear()
    name = f"{server.address}/library/app:v1"
    if shelf.daemon.version.startswith("2."):
        # tells of each blob, so nothing depends on listings
        shelf.relist_interval = 100 * HANG
    async with running(shelf.store()) as store, trio.open_nursery() as nursery:
        nursery.start_soon(shelf.ctr, "content", "fetch", "--plain-http", name)
        await eventually(lambda: {image.root, image.manifest} <= store.keys())
        assert store.resolve(name) is None
        for digest, media_type in ((image.root, OCI_INDEX), (image.manifest, OCI_MANIFEST)):
            descriptor = store.describe(digest)
            assert descriptor is not None
            assert descriptor.media_type == media_type
        assert not frozenset(image.layers) & store.keys(), "what is in ingest/ is not content"
        server.gate.set()
        await eventually(lambda: store.resolve(name) == image.root)
        assert image.host_platform <= store.keys()
        descriptor = store.describe(image.layers[0])
        assert descriptor is not None
        assert descriptor.media_type == image.media_types[image.layers[0]]


async def test_a_download_is_read_while_it_grows_and_announced_before_the_image(
    shelf: ContainerdShelf, upstream: type[Upstream]
) -> None:
    image = sample_image(layer_sizes=(1000, 4 * MIB))
    server = upstream(image)
    small, large = image.layers
    release_small, release_large = server.pause(small, 0), server.pause(large, 3 * MIB)
    name = f"{server.address}/library/app:v1"
    shelf.relist_interval = 100 * HANG
    async with running(shelf.store()) as store, trio.open_nursery() as nursery:
        await trio.sleep(1.1)  # past the listing that follows a start
        nursery.start_soon(shelf.ctr, "content", "fetch", "--plain-http", name)
        (await opened(store, small)).close()
        body = image.blobs[large]
        with await opened(store, large) as file:
            await eventually(lambda: file.size() >= 2 * MIB)
            assert (file.total, file.complete, file.abandoned()) == (len(body), False, False)
            assert content(file) == body[: file.size()]
            with trio.fail_after(HANG):
                while await store.at_work() != file.size():
                    await trio.sleep(0.05)
            release_small.set()
            with trio.fail_after(HANG):
                while store.describe(small) is None:
                    await store.at_work()
                    await trio.sleep(0.05)
            assert store.resolve(name) is None
            assert store.describe(large) is None
            release_large.set()
            await eventually(lambda: file.complete)
            assert content(file) == body
            await eventually(lambda: store.resolve(name) == image.root)
            assert not file.abandoned()
        with await opened(store, large) as file:
            assert (file.total, file.complete, content(file)) == (len(body), True, body)
        assert await store.at_work() is None
        assert await shelf.elsewhere().downloading(large) is None, "another namespace has no part in it"


async def test_a_download_that_nobody_saw_is_found_when_it_is_expected(
    shelf: ContainerdShelf, upstream: type[Upstream]
) -> None:
    image = sample_image(layer_sizes=(1000, 4 * MIB))
    server = upstream(image)
    small, large = image.layers
    release = server.pause(large, 2 * MIB)
    name = f"{server.address}/library/app:v1"
    shelf.relist_interval = 100 * HANG
    refusing = shelf.store(lambda name: name.startswith("docker.io/"))
    async with (
        running(shelf.store()) as store,
        running(refusing),
        running(shelf.elsewhere()) as elsewhere,
        trio.open_nursery() as nursery,
    ):
        await trio.sleep(1.1)  # past the listing that follows a start
        nursery.start_soon(shelf.ctr, "content", "fetch", "--plain-http", name)
        await eventually((shelf.daemon.content / "blobs" / "sha256" / small.encoded).exists)
        for each in (store, refusing, elsewhere):
            each.expect(small)
        await eventually(lambda: store.describe(small) is not None)
        assert store.resolve(name) is None, "the image is not complete"
        await trio.sleep(0.5)
        assert refusing.describe(small) is None
        assert elsewhere.describe(small) is None, "another namespace has no part in it"
        release.set()


async def test_pull_of_a_refused_repository_is_not_served(shelf: ContainerdShelf, upstream: type[Upstream]) -> None:
    image, public = sample_image(), sample_image()
    server = upstream(image)
    server.gate.clear()
    name = f"{server.address}/library/app:v1"
    hub = shelf.store(lambda name: name.startswith("docker.io/"))
    async with running(hub) as store, trio.open_nursery() as nursery:
        nursery.start_soon(shelf.ctr, "content", "fetch", "--plain-http", name)
        await trio.sleep(1)
        assert store.keys() == frozenset()
        server.gate.set()
        await shelf.add(public)
        await eventually(lambda: store.resolve(public.name))
        assert not store.keys() & image.blobs.keys()


async def test_collected_garbage_is_withdrawn(shelf: ContainerdShelf, upstream: type[Upstream]) -> None:
    image = sample_image()
    name = f"{upstream(image).address}/library/app:v1"
    shelf.relist_interval = 100 * HANG
    async with running(shelf.store()) as store:
        await shelf.ctr("content", "fetch", "--plain-http", name)
        await eventually(lambda: store.resolve(name))
        await shelf.ctr("images", "rm", "--sync", name)  # the garbage is collected at once, not at some later moment
        await eventually(lambda: store.keys() == frozenset())


async def test_image_that_is_moved_to_another_digest(shelf: ContainerdShelf) -> None:
    first = sample_image("docker.io/library/moved:v1")
    second = sample_image("docker.io/library/moved:v1")
    await shelf.add(first)
    async with running(shelf.store()) as store:
        assert store.resolve(first.name) == first.root
        await shelf.add(second)
        await eventually(lambda: store.resolve(first.name) == second.root)
        await eventually(lambda: not {first.root} & store.keys())


async def test_event_reaches_the_index_without_a_listing(shelf: ContainerdShelf) -> None:
    image = sample_image()
    await shelf.add(image)
    shelf.relist_interval = 100 * HANG
    async with running(shelf.store()) as store:
        # past the listing that follows a start
        await trio.sleep(1.1)
        waits = []
        for number in range(5):
            name = f"docker.io/library/tagged:v{number}"
            await shelf.ctr("images", "tag", image.name, name)
            began = time.monotonic()
            await eventually(lambda name=name: store.resolve(name))
            waits.append(time.monotonic() - began)
        print(f"containerd {shelf.daemon.version}: index follows {max(waits) * 1000:.0f} ms after ctr has ended")


def variants(base: SampleImage, number: int) -> list[SampleImage]:
    """Images that differ in their index and manifest only."""
    images = []
    for serial in range(number):
        manifest = json.dumps({**json.loads(base.blobs[base.manifest]), "annotations": {"n": str(serial)}}).encode()
        index = json.loads(base.blobs[base.root])
        index["manifests"][0] |= {"digest": Digest.of(manifest), "size": len(manifest)}
        root = json.dumps(index).encode()
        new = {Digest.of(root): root, Digest.of(manifest): manifest}
        images.append(
            replace(
                base,
                name=f"docker.io/library/variant{serial}:v1",
                root=Digest.of(root),
                manifest=Digest.of(manifest),
                blobs=base.blobs | new,
                media_types=base.media_types | dict(zip(new, (OCI_INDEX, OCI_MANIFEST), strict=True)),
            )
        )
    return images


async def test_two_hundred_images(shelf: ContainerdShelf) -> None:
    images = variants(sample_image(layer_sizes=(10, 20, 30, 40)), 200)
    await shelf.add(*images)
    async with running(shelf.store()) as store:
        assert len(store.images()) == 200
        assert {digest for image in images for digest in image.layers} <= store.keys()
