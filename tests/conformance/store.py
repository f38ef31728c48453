# What every Store must do.  A subclass of StoreSuite gives a fixture `shelf`: something that a store looks at,
# and that the tests put images on and take them from.  Stores may notice late, so the tests wait.

"""The conformance suite of the ``Store`` protocol."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import pytest
import trio
from lab.process import HANG

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from spegel_consul.store import Blob, Changed, Image, Store

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# what `uname -m` says is not what images say
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
HOST = ARCHITECTURES.get(os.uname().machine, os.uname().machine)
OTHER = "s390x"

_serial = count(1)


@dataclass(frozen=True)
class SampleImage:
    """A multi-platform image: an index of two manifests, the first for this machine."""

    name: str
    root: Digest
    manifest: Digest
    config: Digest
    layers: tuple[Digest, ...]
    blobs: dict[Digest, bytes]
    media_types: dict[Digest, str]

    @property
    def host_platform(self) -> frozenset[Digest]:
        """What must be there for the image to be whole on this machine."""
        return frozenset((self.root, self.manifest, self.config, *self.layers))


def sample_image(
    name: str = "", layer_sizes: tuple[int, ...] = (1000, 3000), shared: SampleImage | None = None
) -> SampleImage:
    """An image with content of its own, except for the layers of ``shared``; sizes are before compression."""
    serial = next(_serial)
    name = name or f"docker.io/library/sample{serial}:v1"
    seed = random.Random(f"{os.getpid()} {serial}")
    blobs: dict[Digest, bytes] = {}
    types: dict[Digest, str] = {}

    def put(body: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(body)
        blobs[digest] = body
        types[digest] = media_type
        return {"mediaType": media_type, "digest": digest, "size": len(body)}

    def put_json(document: object, media_type: str) -> dict[str, object]:
        return put(json.dumps(document).encode(), media_type)

    manifests = []
    for architecture in (HOST, OTHER):
        bodies = [seed.randbytes(size) for size in layer_sizes]
        layers = [put(gzip.compress(body, 1, mtime=0), LAYER) for body in bodies]
        if shared is not None:
            layers += [put(shared.blobs[digest], LAYER) for digest in shared.layers]
        rootfs = {"type": "layers", "diff_ids": [Digest.of(gzip.decompress(blobs[x["digest"]])) for x in layers]}  # type: ignore[index]
        config = put_json({"architecture": architecture, "os": "linux", "rootfs": rootfs, "id": serial}, OCI_CONFIG)
        manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
        described = put_json(manifest, OCI_MANIFEST)
        manifests.append(described | {"platform": {"architecture": architecture, "os": "linux"}})
    root = put_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}, OCI_INDEX)
    first = json.loads(blobs[manifests[0]["digest"]])  # type: ignore[index]
    return SampleImage(
        name,
        Digest(str(root["digest"])),
        Digest(str(manifests[0]["digest"])),
        Digest(first["config"]["digest"]),
        tuple(Digest(layer["digest"]) for layer in first["layers"]),
        blobs,
        types,
    )


class Shelf(Protocol):
    """What a store looks at."""

    def store(self, accept: Callable[[str], bool]) -> Store:
        """A store that is not running yet."""
        ...

    async def add(self, image: SampleImage) -> None: ...

    async def remove(self, image: SampleImage) -> None:
        """Take the name away, and the content that no other image has."""
        ...

    async def lose(self, digest: Digest) -> None:
        """Delete content behind the store's back."""
        ...


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Store]:
    """The store while its run() runs, after it has started."""
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        yield store
        nursery.cancel_scope.cancel()


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds."""
    with trio.move_on_after(HANG):
        while not condition():
            await trio.sleep(0.01)
        return
    pytest.fail(f"did not become true within {HANG:g} s")


async def read_all(blob: Blob, start: int = 0, stop: int = sys.maxsize) -> bytes:
    pieces = [piece async for piece in blob.chunks(start, stop)]
    assert all(0 < len(piece) <= 1 << 20 for piece in pieces)
    return b"".join(pieces)


class StoreSuite:
    """Subclass it as Test… with a fixture ``shelf``."""

    @pytest.fixture
    async def full(self, shelf: Shelf) -> AsyncIterator[tuple[Store, SampleImage]]:
        """A running store that has one image."""
        image = sample_image()
        await shelf.add(image)
        async with running(shelf.store(lambda name: True)) as store:
            yield store, image

    async def test_is_a_store_without_a_problem(self, full: tuple[Store, SampleImage]) -> None:
        store, _ = full
        assert store.problem is None

    async def test_resolves_names(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        assert store.resolve(image.name) == image.root
        assert store.resolve("docker.io/library/absent:v1") is None
        assert store.images() == (Image(image.name, image.root),)

    async def test_a_tag_has_an_age(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        first = store.tag_age(image.name)
        assert first is not None
        assert 0 <= first < 3600
        await trio.sleep(0.01)
        assert (store.tag_age(image.name) or 0.0) > first
        assert store.tag_age("docker.io/library/absent:v1") is None

    async def test_describes_content(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        for digest in image.host_platform:
            descriptor = store.describe(digest)
            assert descriptor is not None
            assert (descriptor.digest, descriptor.size) == (digest, len(image.blobs[digest]))
            assert descriptor.media_type == image.media_types[digest]
        assert store.describe(Digest.of(b"absent")) is None

    async def test_keys_are_digests_and_names(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        assert image.host_platform | {image.name} <= store.keys() <= image.blobs.keys() | {image.name}

    async def test_reads_content(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        for digest in image.host_platform:
            async with store.open(digest) as blob:
                assert await read_all(blob) == image.blobs[digest]

    async def test_reads_ranges(self, shelf: Shelf) -> None:
        image = sample_image(layer_sizes=((5 << 20) // 2,))
        await shelf.add(image)
        async with running(shelf.store(lambda name: True)) as store:
            body = image.blobs[image.layers[0]]
            async with store.open(image.layers[0]) as blob:
                for start, stop in ((0, 1), (7, 1 << 20), (1 << 20, (2 << 20) + 1), (len(body) - 3, len(body)), (5, 5)):
                    assert await read_all(blob, start, stop) == body[start:stop]
                async for _ in blob.chunks(0, len(body)):
                    break
                assert await read_all(blob) == body

    async def test_file_holds_exactly_the_content(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        async with store.open(image.layers[0]) as blob:
            fileno = blob.fileno()
            if fileno is not None:
                body = image.blobs[image.layers[0]]
                assert os.fstat(fileno).st_size == len(body)
                assert os.pread(fileno, len(body) + 1, 0) == body

    async def test_absent_content_is_unknown(self, full: tuple[Store, SampleImage]) -> None:
        store, _ = full
        with pytest.raises(BlobUnknown):
            async with store.open(Digest.of(b"absent")):
                pass

    async def test_content_that_is_complete_is_no_download(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full
        for digest in (image.layers[0], Digest.of(b"absent")):
            assert await store.downloading(digest) is None
        assert await store.at_work() is None

    async def test_many_readers(self, full: tuple[Store, SampleImage]) -> None:
        store, image = full

        async def reader() -> None:
            async with store.open(image.layers[1]) as blob:
                assert await read_all(blob) == image.blobs[image.layers[1]]

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(reader)

    async def test_watch_tells_what_is_there_and_what_changes(
        self, full: tuple[Store, SampleImage], shelf: Shelf
    ) -> None:
        store, image = full
        later = sample_image()
        versions = [store.version]
        async with store.watch() as changes:
            with trio.fail_after(HANG):
                assert await anext(changes) == Changed(store.keys(), frozenset())
                await shelf.add(later)
                seen: set[str] = set()
                while not later.host_platform | {later.name} <= seen:
                    changed = await anext(changes)
                    seen = (seen | changed.added) - changed.removed
                versions.append(store.version)
                await shelf.remove(image)
                gone: set[str] = set()
                while not image.host_platform | {image.name} <= gone:
                    gone |= (await anext(changes)).removed
        versions.append(store.version)
        assert versions == sorted(set(versions)), "the version does not tell of changes"
        assert store.resolve(later.name) == later.root
        assert store.resolve(image.name) is None

    async def test_slow_watcher_gets_one_change(self, full: tuple[Store, SampleImage], shelf: Shelf) -> None:
        store, image = full
        async with store.watch() as changes:
            await anext(changes)
            first, second = sample_image(), sample_image()
            await shelf.add(first)
            await eventually(lambda: store.resolve(first.name))
            await shelf.remove(first)
            await shelf.add(second)
            await eventually(lambda: store.resolve(second.name) and not first.host_platform & store.keys())
            changed = await anext(changes)
            assert changed.added == store.keys() - image.blobs.keys() - {image.name}
            # platforms of other machines may go by themselves
            assert changed.removed <= image.blobs.keys() - image.host_platform

    async def test_watch_of_an_empty_store_tells_so(self, shelf: Shelf) -> None:
        async with running(shelf.store(lambda name: True)) as store, store.watch() as changes:
            assert await anext(changes) == Changed(frozenset(), frozenset())

    async def test_shared_content_stays_with_the_other_image(self, shelf: Shelf) -> None:
        base = sample_image()
        child = sample_image(shared=base)
        await shelf.add(base)
        await shelf.add(child)
        async with running(shelf.store(lambda name: True)) as store:
            assert {base.name, child.name} <= store.keys()
            await shelf.remove(base)
            await eventually(lambda: not {base.root, base.name} & store.keys())
            assert store.resolve(child.name) == child.root
            assert child.host_platform <= store.keys()

    async def test_deletion_under_an_open_blob(self, shelf: Shelf) -> None:
        # a layer that both platforms have
        image = sample_image(shared=sample_image())
        digest = image.layers[-1]
        await shelf.add(image)
        async with running(shelf.store(lambda name: True)) as store:
            assert store.resolve(image.name)
            async with store.open(digest) as blob:
                await shelf.lose(digest)
                with suppress(BlobUnknown):
                    assert await read_all(blob) == image.blobs[digest]

            async def is_unknown() -> bool:
                try:
                    async with store.open(digest):
                        return False
                except BlobUnknown:
                    return True

            with trio.fail_after(HANG):
                while not await is_unknown():
                    await trio.sleep(0.02)
            keys = store.keys()
            assert digest not in keys
            assert image.name not in keys, "an image that is not whole must not be announced"
            assert image.root in keys, "what is left is served by digest"

    async def test_refused_images_are_not_served(self, shelf: Shelf) -> None:
        public = sample_image()
        secret = sample_image("registry.example/team/secret:v1", shared=public)
        await shelf.add(public)
        await shelf.add(secret)
        async with running(shelf.store(lambda name: not name.startswith("registry.example/"))) as store:
            assert store.resolve(secret.name) is None
            assert store.resolve(public.name) == public.root
            assert public.host_platform <= store.keys()
            assert not (secret.host_platform - public.host_platform) & store.keys()
            with pytest.raises(BlobUnknown):
                async with store.open(secret.config):
                    pass
