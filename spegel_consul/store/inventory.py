"""What a store has, counted for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import registry_name
from spegel_consul.store import Image, Store
from spegel_consul.store.index import Index


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A named image that is there whole; ``size`` is bytes of all its parts that are there, ``parts`` their number."""

    image: Image
    size: int
    parts: int


@dataclass(frozen=True, slots=True)
class Advertised:
    """How much is announced, by registry; content that several registries share counts for each of them."""

    tags: Mapping[str, int]
    images: Mapping[str, int]
    contents: Mapping[str, int]


class CountedStore(Store, Protocol):
    """A store that can be shown to people."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with a part of the store, though the rest of it answers; one line each."""
        ...

    def stored_images(self) -> tuple[StoredImage, ...]:
        """The named images with their sizes."""
        ...

    def advertised(self) -> Advertised:
        """Counts of what is announced."""
        ...


def stored_images(index: Index) -> tuple[StoredImage, ...]:
    """All named images, by name."""
    return tuple(_stored_image(index, image) for image in index.images())


def _stored_image(index: Index, image: Image) -> StoredImage:
    present = [found for digest in index.parts(image.name) if (found := index.describe(digest)) is not None]
    return StoredImage(image, sum(found.size for found in present), len(present))


def advertised(index: Index) -> Advertised:
    """Counts of what may be served now."""
    images = index.images()
    behind: defaultdict[str, set[Digest]] = defaultdict(set)
    for image in images:
        behind[_registry(image.name)].add(image.digest)
    contents: Counter[str] = Counter()
    for digest in index.digests():
        contents.update({_registry(name) for name in index.origins(digest)} or {""})
    return Advertised(
        Counter(_registry(image.name) for image in images),
        {registry: len(digests) for registry, digests in behind.items()},
        contents,
    )


def _registry(name: str) -> str:
    """The registry in a full name; "" where a name has none."""
    registry, slash, _ = name.partition("/")
    return registry_name(registry) if slash else ""
