from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from conformance.store import SampleImage, Shelf, StoreSuite, running, sample_image
from fakes.memory_store import MemoryStore

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.store import Blob, Store, union
from spegel_consul.store.union import UnionStore


class UnionShelf:
    """Two stores; what the first image brings is in both, others are put into one and the other in turn."""

    def __init__(self) -> None:
        self._images: dict[str, SampleImage] = {}
        self._places: dict[str, list[int]] = {}
        self.parts: list[MemoryStore] = []

    def store(self, accept: Callable[[str], bool]) -> Store:
        self.parts = [MemoryStore(accept), MemoryStore(accept)]
        for image in self._images.values():
            self._put(image)
        return UnionStore(self.parts)

    async def add(self, image: SampleImage) -> None:
        self._places[image.name] = [0, 1] if not self._images else [len(self._images) % 2]
        self._images[image.name] = image
        self._put(image)

    async def remove(self, image: SampleImage) -> None:
        del self._images[image.name]
        left = {digest for other in self._images.values() for digest in other.blobs}
        for place in self._places[image.name] if self.parts else ():
            self.parts[place].remove_image(image.name)
            for digest in image.blobs.keys() - left:
                self.parts[place].remove_content(digest)

    async def lose(self, digest: Digest) -> None:
        for part in self.parts:
            part.remove_content(digest)

    def _put(self, image: SampleImage) -> None:
        for place in self._places[image.name] if self.parts else ():
            for digest, body in image.blobs.items():
                self.parts[place].add_content(body, image.media_types[digest])
            self.parts[place].add_image(image.name, image.blobs[image.root], 0)


class TestUnionStore(StoreSuite):
    @pytest.fixture
    def shelf(self) -> Shelf:
        return UnionShelf()

    async def test_what_another_part_still_has_is_not_withdrawn(self) -> None:
        shelf = UnionShelf()
        image = sample_image()
        await shelf.add(image)
        async with running(shelf.store(lambda name: True)) as store, store.watch() as changes:
            assert (await anext(changes)).added == store.keys()
            before = store.version
            shelf.parts[0].remove_image(image.name)
            for digest in image.blobs:
                shelf.parts[0].remove_content(digest)
            assert store.keys() == shelf.parts[1].keys()
            assert store.resolve(image.name) == image.root
            assert store.version != before
            shelf.parts[1].remove_image(image.name)
            changed = await anext(changes)
            assert image.name in changed.removed
            assert not changed.added

    async def test_a_problem_is_one_of_all_and_that_of_one_is_a_warning(self) -> None:
        parts = [MemoryStore(), MemoryStore()]
        store = UnionStore(parts)
        assert (store.problem, store.warnings) == (None, ())
        parts[1]._problem = "it is away"
        assert (store.problem, store.warnings) == (None, ("it is away",)), "the other one serves what it has"
        parts[0]._problem = "so is this"
        assert (store.problem, store.warnings) == ("so is this", ("it is away",))

    async def test_what_the_first_has_lost_is_read_from_the_next(self) -> None:
        parts = [MemoryStore(), MemoryStore()]
        (digest,) = {part.add_content(b"here") for part in parts}
        store = UnionStore(parts)
        opened = parts[0].open

        @asynccontextmanager
        async def lost(digest: Digest) -> AsyncIterator[Blob]:
            parts[0].remove_content(digest)
            async with opened(digest) as blob:
                yield blob

        parts[0].open = lost  # type: ignore[method-assign]
        async with store.open(digest) as blob:
            assert b"".join([piece async for piece in blob.chunks(0, 4)]) == b"here"
        parts[1].remove_content(digest)
        with pytest.raises(BlobUnknown):
            async with store.open(digest):
                pass

    async def test_what_goes_wrong_with_an_open_blob_is_not_tried_again(self) -> None:
        parts = [MemoryStore(), MemoryStore()]
        (digest,) = {part.add_content(b"here") for part in parts}
        opened = 0
        with pytest.raises(BlobUnknown, match="gone meanwhile"):
            async with UnionStore(parts).open(digest):
                opened += 1
                raise BlobUnknown("gone meanwhile", {"digest": digest})
        assert opened == 1


class _Files(MemoryStore):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def file(self, digest: Digest) -> str | None:
        return self._path


async def test_a_file_that_one_has_lost_is_another_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a tmpfs does not remember what is gone
    monkeypatch.setattr(union, "may_be_there", lambda path: Path(path).exists())
    (tmp_path / "there").write_bytes(b"x")
    parts = [_Files(str(tmp_path / name)) for name in ("gone", "there")]
    (digest,) = {part.add_content(b"x") for part in parts}
    async with running(UnionStore(parts)) as store:
        assert store.file(digest) == str(tmp_path / "there")
        (tmp_path / "there").unlink()
        assert store.file(digest) is None


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_name_in_several_is_that_of_the_youngest(order: tuple[int, int]) -> None:
    class Aged(MemoryStore):
        def __init__(self, age: float | None) -> None:
            super().__init__()
            self._age = age

        def tag_age(self, name: str) -> float | None:
            return self._age

    name, kept, old, young = "docker.io/library/app:latest", Aged(None), Aged(30 * 86400.0), Aged(3600.0)
    for number, store in enumerate((kept, old, young)):
        config = {
            "digest": store.add_content(b"{}"),
            "size": 2,
            "mediaType": "application/vnd.oci.image.config.v1+json",
        }
        image = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
        digest = store.add_image(name, json.dumps(image | {"annotations": {"version": str(number)}}).encode())
    both = [old, young]
    async with running(UnionStore([kept, *(both[each] for each in order)])) as all_of_them:
        assert (all_of_them.resolve(name), all_of_them.tag_age(name)) == (digest, 3600.0)
        assert [image.digest for image in all_of_them.images()] == [digest]


async def test_a_name_that_is_pulled_again_is_another_version() -> None:
    """Requests are remembered with the version, and no record changes but for its time."""
    name, rolled_back, newest = "docker.io/library/app:latest", MemoryStore(), MemoryStore()
    manifests = []
    for number, (store, age) in enumerate(((rolled_back, 3600.0), (newest, 1800.0))):
        config = {"digest": store.add_content(b"{}"), "size": 2}
        manifests.append(json.dumps({"config": config, "layers": [], "annotations": {"version": str(number)}}).encode())
        store.add_image(name, manifests[-1], age)
    async with running(UnionStore([rolled_back, newest])) as both:
        version = both.version
        assert both.resolve(name) == Digest.of(manifests[1])
        rolled_back.add_image(name, manifests[0], 60.0)
        assert both.resolve(name) == Digest.of(manifests[0])
        assert both.version != version
