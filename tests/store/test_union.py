from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.store import SampleImage, Shelf, StoreSuite, running, sample_image

from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store
from spegel_consul.store.memory import MemoryStore
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
            self.parts[place].add_image(image.name, image.blobs[image.root])


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

    async def test_a_problem_of_one_is_one_of_all(self) -> None:
        parts = [MemoryStore(), MemoryStore()]
        store = UnionStore(parts)
        assert store.problem is None
        parts[1]._problem = "it is away"
        assert store.problem == "it is away"
