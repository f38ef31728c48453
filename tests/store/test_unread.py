"""The content that a store reads to find the manifests among it."""

from __future__ import annotations

from conformance.store import sample_image

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import INDEXES, MANIFESTS, OCI_INDEX
from spegel_consul.store.index import Content, ImageRecord, Index, Snapshot
from spegel_consul.store.manifest_walk import ManifestInvalid, parse


def read(index: Index, bodies: dict[Digest, bytes]) -> list[Digest]:
    """Learn all that is to be read, and return it in the order in which it was asked for."""
    found: list[Digest] = []
    while unread := index.unread():
        for content in unread:
            found.append(content.digest)
            try:
                index.learn(content.digest, parse(bodies[content.digest]))
            except ManifestInvalid:
                index.learn(content.digest, None)
    return found


def test_the_parts_of_an_image_are_known_by_its_manifests_and_are_not_read() -> None:
    image = sample_image(layer_sizes=tuple(range(1, 11)))
    # labels of a runtime name a source of each blob, so each could be a manifest of a pull that goes on
    snapshot = [Content(digest, len(body), ("docker.io/library/app",)) for digest, body in image.blobs.items()]
    record = ImageRecord(image.name, Descriptor(image.root, len(image.blobs[image.root]), OCI_INDEX))
    index = Index()
    index.apply(Snapshot((record,), tuple(snapshot)))
    order = read(index, image.blobs)
    assert order[0] == image.root
    assert sorted(order) == sorted(each for each, kind in image.media_types.items() if kind in INDEXES | MANIFESTS)


def test_content_that_no_image_has_is_read_after_the_manifests() -> None:
    image, pulled = sample_image(), sample_image()
    bodies = image.blobs | pulled.blobs
    snapshot = [Content(digest, len(body), ("docker.io/library/app",)) for digest, body in bodies.items()]
    record = ImageRecord(image.name, Descriptor(image.root, len(bodies[image.root]), OCI_INDEX))
    index = Index()
    index.apply(Snapshot((record,), tuple(snapshot)))
    order = read(index, bodies)
    assert order[0] == image.root
    assert set(order[3:]) == set(pulled.blobs)
    index.settle()
    assert index.digests() == frozenset(bodies)
