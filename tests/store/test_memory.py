from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.store import SampleImage, StoreSuite
from fakes.memory_store import MemoryStore

from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store


class MemoryShelf:
    def __init__(self, *, files: bool) -> None:
        self._files = files
        self._images: dict[str, SampleImage] = {}
        self._store: MemoryStore | None = None

    def store(self, accept: Callable[[str], bool]) -> Store:
        self._store = MemoryStore(accept, files=self._files)
        for image in self._images.values():
            self._put(self._store, image)
        return self._store

    async def add(self, image: SampleImage) -> None:
        self._images[image.name] = image
        if self._store is not None:
            self._put(self._store, image)

    async def remove(self, image: SampleImage) -> None:
        del self._images[image.name]
        if self._store is not None:
            self._store.remove_image(image.name)
            for digest in image.blobs.keys() - {other for left in self._images.values() for other in left.blobs}:
                self._store.remove_content(digest)

    async def lose(self, digest: Digest) -> None:
        assert self._store is not None
        self._store.remove_content(digest)

    def _put(self, store: MemoryStore, image: SampleImage) -> None:
        for digest, body in image.blobs.items():
            store.add_content(body, image.media_types[digest])
        store.add_image(image.name, image.blobs[image.root], 0)


@pytest.mark.parametrize("files", [False, True], ids=["bytes", "files"])
class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def shelf(self, files: bool) -> MemoryShelf:
        return MemoryShelf(files=files)
