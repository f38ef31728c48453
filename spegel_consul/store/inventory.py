"""The contents of a store as counts and sizes, for the status page and the metrics.

A new figure about a store belongs here if it follows from the index.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Protocol

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.reference import registry_name
from spegel_consul.store import Image, Store
from spegel_consul.store.index import Index


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A named image that is whole; ``size`` is the bytes of all its present parts, ``parts`` their number."""

    image: Image
    size: int
    parts: int


@dataclass(frozen=True, slots=True)
class Advertised:
    """Counts of announced tags, images and contents by registry; shared content counts for each of its registries."""

    tags: Mapping[str, int]
    images: Mapping[str, int]
    contents: Mapping[str, int]


class CountedStore(Store, Protocol):
    """A store with the figures for the status page and the metrics."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of a part of the store while the rest of it answers; one line each."""
        ...

    def stored_images(self) -> tuple[StoredImage, ...]:
        """Return the named images with their sizes."""
        ...

    def image_contents(self) -> Mapping[Digest, int]:
        """Return the sizes of all content of the named images, which may share layers and have several names."""
        ...

    def advertised(self) -> Advertised:
        """Return counts of announced names and content."""
        ...


def stored_images(index: Index) -> tuple[StoredImage, ...]:
    """Return all named images, sorted by name."""
    return tuple(_stored_image(index, image) for image in index.images())


def _stored_image(index: Index, image: Image) -> StoredImage:
    present = [found for digest in index.parts(image.name) if (found := index.describe(digest)) is not None]
    return StoredImage(image, sum(found.size for found in present), len(present))


def image_contents(index: Index) -> dict[Digest, int]:
    """Return the sizes of the present content of all named images."""
    digests = frozenset().union(*(index.parts(image.name) for image in index.images()))
    return {digest: found.size for digest in digests if (found := index.describe(digest)) is not None}


def advertised(index: Index) -> Advertised:
    """Return counts of announced names and content."""
    images = index.images()
    roots: defaultdict[str, set[Digest]] = defaultdict(set)
    for image in images:
        roots[_registry(image.name)].add(image.digest)
    contents: Counter[str] = Counter()
    for digest in index.digests():
        contents.update({_registry(name) for name in index.origins(digest)} or {""})
    return Advertised(
        Counter(_registry(image.name) for image in images),
        {registry: len(digests) for registry, digests in roots.items()},
        contents,
    )


def _registry(name: str) -> str:
    """Return the registry in a full name; "" if it has none."""
    registry, slash, _ = name.partition("/")
    return registry_name(registry) if slash else ""
