from __future__ import annotations

import gc
import json
import random
import tracemalloc
from dataclasses import replace

import pytest
from conformance.store import SampleImage, sample_image
from hypothesis import given, settings
from hypothesis import strategies as st

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, OCTET_STREAM
from spegel_consul.store import Changed, Image
from spegel_consul.store.index import Content, ImageRecord, Index, Snapshot
from spegel_consul.store.manifest_walk import ManifestInvalid, parse

CONFIG = "application/vnd.docker.container.image.v1+json"


def record(image: SampleImage, name: str = "") -> ImageRecord:
    target = Descriptor(image.root, len(image.blobs[image.root]), image.media_types[image.root])
    return ImageRecord(name or image.name, target)


def contents(*images: SampleImage, sources: tuple[str, ...] = ()) -> tuple[Content, ...]:
    return tuple(Content(digest, len(body), sources) for image in images for digest, body in image.blobs.items())


def settle(index: Index, bodies: dict[Digest, bytes]) -> Changed:
    """As a store does it: read what is asked for, then settle."""
    while unread := index.unread():
        for content in unread:
            try:
                index.learn(content.digest, parse(bodies[content.digest]))
            except ManifestInvalid:
                index.learn(content.digest, None)
    return index.settle()


def indexed(image: SampleImage, *names: str) -> Index:
    index = Index()
    index.apply(Snapshot(tuple(record(image, name) for name in names), contents(image)))
    settle(index, image.blobs)
    return index


def test_a_blob_costs_little_memory() -> None:
    """Each message of a runtime has a copy of its own of a digest and of a media type."""
    images = [sample_image(layer_sizes=(100,)) for _ in range(100)]
    copies = [json.dumps([[str(digest), len(body)] for digest, body in image.blobs.items()]) for image in images]
    bodies = {digest: body for image in images for digest, body in image.blobs.items()}
    blobs = len(bodies)
    gc.collect()
    tracemalloc.start()
    try:
        index = Index()
        index.apply(
            Snapshot(
                tuple(record(image) for image in images),
                tuple(Content(Digest(digest), size, ()) for copy in copies for digest, size in json.loads(copy)),
            )
        )
        settle(index, bodies)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used / blobs < 1000, "copies of digests and sets of one name take 400 bytes more"


def test_changes_are_told_once() -> None:
    image = sample_image()
    index = Index()
    index.apply(Snapshot((record(image),), contents(image)))
    assert settle(index, image.blobs) == Changed(frozenset(image.blobs) | {image.name}, frozenset())
    index.apply(Snapshot((record(image),), contents(image)))
    assert index.unread() == ()
    assert index.settle() == Changed(frozenset(), frozenset())
    index.apply(Snapshot())
    assert index.settle() == Changed(frozenset(), frozenset(image.blobs) | {image.name})


@pytest.mark.parametrize(
    "name",
    ["app:v1", "docker.io/library/app", "docker.io/Library/app:v1", "import-2024-01-01", "docker.io/a/b:v1@sha256:ab"],
)
def test_odd_names_are_not_announced_but_hold_content(name: str) -> None:
    image = sample_image()
    index = indexed(image, name)
    assert index.images() == ()
    assert index.keys() == frozenset(image.blobs)


def test_digest_names_hold_content() -> None:
    image = sample_image()
    index = indexed(image, f"docker.io/library/app@{image.root}", f"docker.io/library/app:v1@{image.root}")
    assert index.keys() == frozenset(image.blobs)


def test_one_whole_platform_is_enough() -> None:
    image = sample_image()
    index = Index()
    host = tuple(content for content in contents(image) if content.digest in image.host_platform)
    index.apply(Snapshot((record(image),), host))
    settle(index, image.blobs)
    assert index.images() == (Image(image.name, image.root),)
    assert index.keys() == image.host_platform | {image.name}
    index.drop_content(image.layers[0])
    assert settle(index, image.blobs) == Changed(frozenset(), frozenset({image.layers[0], image.name}))


def test_discarded_layers_leave_manifests_to_be_served_by_digest() -> None:
    image = sample_image()
    index = Index()
    kept = tuple(content for content in contents(image) if "layer" not in image.media_types[content.digest])
    index.apply(Snapshot((record(image),), kept))
    settle(index, image.blobs)
    assert index.images() == ()
    assert {image.root, image.manifest, image.config} <= index.keys()


@pytest.mark.parametrize("suffix", ["", "@sha256:" + "0" * 64])
def test_a_record_leads_to_its_parts_before_they_are_known_to_be_there(suffix: str) -> None:
    """containerd 1.x has no events for content, so a store asks for what an image that has come is made of."""
    image, index = sample_image(), Index()
    name = image.name + suffix
    index.put_image(record(image, name))
    assert index.reached(name) == {image.root}
    there: set[Digest] = set()
    while missing := index.reached(name) - there:
        there |= missing
        for digest in missing:
            index.put_content(Content(digest, len(image.blobs[digest])))
        for content in index.unread():
            index.learn(content.digest, parse(image.blobs[content.digest]))
    assert index.reached(name) == frozenset(image.blobs)


def test_name_is_announced_when_the_last_part_arrives() -> None:
    image = sample_image()
    index = Index()
    index.put_image(record(image))
    for content in contents(image):
        index.put_content(content)
        settle(index, image.blobs)
    assert index.resolve(image.name) == image.root


def test_content_without_image_needs_an_accepted_source() -> None:
    image = sample_image()
    index = Index(lambda name: name.startswith("docker.io/"))
    index.apply(Snapshot(contents=contents(image)))
    assert settle(index, image.blobs).added == frozenset()
    assert index.is_stray(image.root)
    index.apply(Snapshot(contents=contents(image, sources=("registry.example/app",))))
    assert settle(index, image.blobs).added == frozenset()
    index.apply(Snapshot(contents=contents(image, sources=("registry.example/app", "docker.io/library/app"))))
    assert settle(index, image.blobs).added == frozenset(image.blobs)
    descriptors = [index.describe(digest) for digest in (image.root, image.manifest, image.layers[0])]
    assert [found and found.media_type for found in descriptors] == [OCI_INDEX, OCI_MANIFEST, OCTET_STREAM]


def test_filter_is_asked_with_full_names() -> None:
    image = sample_image("docker.io/library/app:v1")
    asked: set[str] = set()

    def accept(name: str) -> bool:
        asked.add(name)
        return True

    index = Index(accept)
    index.apply(Snapshot((record(image),), (Content(Digest.of(b"x"), 1, ("quay.io/a/b",)), *contents(image))))
    settle(index, {**image.blobs, Digest.of(b"x"): b"x"})
    assert asked == {image.name, f"quay.io/a/b@{Digest.of(b'x')}"}


def test_content_of_refused_images_is_not_served_whatever_its_labels() -> None:
    image = sample_image("docker.io/library/app:secret")
    index = Index(lambda name: not name.endswith(":secret"))
    index.apply(Snapshot((record(image),), contents(image, sources=("docker.io/library/app",))))
    assert settle(index, image.blobs).added == frozenset()
    index.put_image(record(image, "docker.io/library/app:public"))
    assert settle(index, image.blobs).added == frozenset(image.blobs) | {"docker.io/library/app:public"}


def test_bare_digest_serves_what_has_no_name() -> None:
    image = sample_image("docker.io/library/app:v1")
    index = Index(lambda name: False)
    index.apply(Snapshot((record(image, image.root),), contents(image)))
    assert settle(index, image.blobs).added == frozenset(image.blobs)
    index.put_image(record(image))
    assert settle(index, image.blobs).removed == frozenset(image.blobs)


SECRET = ImageFilter.build(excluded=["^registry.example.com/secret/"])


@pytest.mark.parametrize(
    ("images", "sources", "is_served"),
    [
        (SECRET, ("registry.example.com/secret/app",), False),
        (SECRET, ("registry.example.com/public/app",), True),
        (ImageFilter.build(["docker.io"]), ("docker.io/library/app",), True),
        (ImageFilter(), (), False),
    ],
)
def test_an_image_whose_tag_has_moved_is_served_as_its_sources_say(
    images: ImageFilter, sources: tuple[str, ...], is_served: bool
) -> None:
    image, index = sample_image("registry.example.com/secret/app:v1"), Index(images.accepts)
    index.apply(Snapshot((record(image, f"moby-dangling@{image.root}"),), contents(image, sources=sources)))
    assert settle(index, image.blobs).added == (frozenset(image.blobs) if is_served else frozenset())
    index.put_image(record(image))
    settle(index, image.blobs)
    assert bool(index.keys()) == images.accepts(image.name), "a named image decides"


def test_media_type_of_a_manifest_is_its_own() -> None:
    config = {"mediaType": CONFIG, "digest": Digest.of(b"{}"), "size": 2}
    for document, referred, expected in (
        ({"mediaType": DOCKER_MANIFEST}, OCI_MANIFEST, DOCKER_MANIFEST),
        ({}, DOCKER_MANIFEST, DOCKER_MANIFEST),
        ({}, "text/plain", OCI_MANIFEST),
    ):
        body = json.dumps({**document, "config": config, "layers": []}).encode()
        digest = Digest.of(body)
        index = Index()
        index.put_image(ImageRecord("docker.io/library/app:v1", Descriptor(digest, len(body), referred)))
        index.put_content(Content(digest, len(body)))
        index.put_content(Content(Digest.of(b"{}"), 2))
        settle(index, {digest: body})
        assert index.describe(digest) == Descriptor(digest, len(body), expected)
        assert index.describe(Digest.of(b"{}")) == Descriptor(Digest.of(b"{}"), 2, CONFIG)
        assert index.resolve("docker.io/library/app:v1") == digest


def test_garbage_in_place_of_a_manifest_is_no_image() -> None:
    digest = Digest.of(b"garbage")
    index = Index()
    index.put_image(ImageRecord("docker.io/library/app:v1", Descriptor(digest, 7, OCI_INDEX)))
    index.put_content(Content(digest, 7))
    settle(index, {digest: b"garbage"})
    assert index.images() == ()


def test_nested_indexes_are_followed_to_a_depth() -> None:
    image = sample_image()
    blobs = dict(image.blobs)
    tops = []
    below = {"mediaType": OCI_INDEX, "digest": image.root, "size": len(blobs[image.root])}
    for _ in range(10):
        body = json.dumps({"mediaType": OCI_INDEX, "manifests": [below, below]}).encode()
        below = {"mediaType": OCI_INDEX, "digest": Digest.of(body), "size": len(body)}
        blobs[Digest.of(body)] = body
        tops.append(Descriptor(Digest.of(body), len(body), OCI_INDEX))
    index = Index()
    names = [f"docker.io/library/nested:{depth}" for depth in range(10)]
    records = tuple(ImageRecord(name, top) for name, top in zip(names, tops, strict=True))
    index.apply(Snapshot(records, tuple(Content(digest, len(body)) for digest, body in blobs.items())))
    settle(index, blobs)
    announced = {found.name for found in index.images()}
    assert set(names[:4]) <= announced < set(names)


def test_moved_name_keeps_its_key() -> None:
    first, second = sample_image("docker.io/library/app:v1"), sample_image("docker.io/library/app:v1")
    blobs = first.blobs | second.blobs
    index = Index()
    index.apply(Snapshot((record(first),), contents(first, second)))
    settle(index, blobs)
    index.put_image(record(second))
    changed = settle(index, blobs)
    assert index.resolve(first.name) == second.root
    assert changed == Changed(frozenset(second.blobs), frozenset(first.blobs))


BASE = sample_image("docker.io/library/base:v1")
IMAGES = [
    BASE,
    sample_image("docker.io/library/child:v1", shared=BASE),
    sample_image("registry.example/refused:v1", shared=BASE),
    replace(BASE, name=f"docker.io/library/base@{BASE.root}"),
    replace(BASE, name=f"moby-dangling@{BASE.root}"),
    replace(BASE, name="docker.io/library/base:v2"),
]
BODIES = {digest: body for image in IMAGES for digest, body in image.blobs.items()}
DIGESTS = sorted(BODIES)
SOURCES: list[tuple[str, ...]] = [(), ("docker.io/library/base",), ("registry.example/refused",)]


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_steps_lead_to_what_a_fresh_index_says(choose: random.Random) -> None:
    def accept(name: str) -> bool:
        return not name.startswith("registry.example/")

    stepwise = Index(accept)
    images: dict[str, ImageRecord] = {}
    present: dict[Digest, Content] = {}
    known: frozenset[str] = frozenset()
    for _ in range(choose.randint(1, 25)):
        for _ in range(choose.randint(1, 8)):
            match choose.randint(0, 5):
                case 0:
                    image = choose.choice(IMAGES)
                    images[image.name] = record(choose.choice(IMAGES), image.name)
                    stepwise.put_image(images[image.name])
                case 1:
                    name = choose.choice(IMAGES).name
                    images.pop(name, None)
                    stepwise.drop_image(name)
                case 2:
                    digest = choose.choice(DIGESTS)
                    present.pop(digest, None)
                    stepwise.drop_content(digest)
                case _:
                    digest = choose.choice(DIGESTS)
                    present[digest] = Content(digest, len(BODIES[digest]), choose.choice(SOURCES))
                    stepwise.put_content(present[digest])
        changed = settle(stepwise, BODIES)
        assert not changed.added & known
        assert changed.removed <= known
        known = (known | changed.added) - changed.removed
        fresh = Index(accept)
        fresh.apply(Snapshot(tuple(images.values()), tuple(present.values())))
        assert settle(fresh, BODIES).added == fresh.keys()
        assert stepwise.keys() == fresh.keys() == known
        assert stepwise.images() == fresh.images()
        assert [stepwise.describe(digest) for digest in DIGESTS] == [fresh.describe(digest) for digest in DIGESTS]


@pytest.mark.parametrize(
    "written",
    ["index.docker.io/library/app:v1", "Registry-1.docker.io/library/app:v1", "DOCKER.io/library/app:v1"],
)
def test_an_image_is_announced_with_the_one_name_of_its_registry(written: str) -> None:
    name, image = "docker.io/library/app:v1", sample_image()
    index = Index(ImageFilter.build(["index.docker.io"]).accepts)
    index.apply(Snapshot((record(image, written),), contents(image)))
    assert name in settle(index, image.blobs).added
    assert index.images() == (Image(name, image.root),)
    assert index.parts(name) == frozenset(image.blobs)
    index.drop_image(written)
    assert name in index.settle().removed
    assert index.images() == ()


def test_of_two_images_with_one_name_the_one_that_is_written_so_counts() -> None:
    name, alias = "docker.io/library/app:v1", "index.docker.io/library/app:v1"
    one, other = sample_image(), sample_image()
    bodies = {**one.blobs, **other.blobs}
    index = Index()
    index.apply(Snapshot((record(one, alias), record(other, name)), contents(one, other)))
    settle(index, bodies)
    assert index.resolve(name) == other.root
    # one that is not whole is no reason to serve the other one, which may be older
    index.drop_content(other.root)
    assert name in settle(index, bodies).removed
    assert index.resolve(name) is None
    index.put_content(Content(other.root, len(other.blobs[other.root])))
    settle(index, bodies)
    assert index.resolve(name) == other.root
    index.drop_image(name)
    assert name not in settle(index, bodies).removed
    assert index.resolve(name) == one.root
    index.drop_image(alias)
    assert name in settle(index, bodies).removed
    assert index.resolve(name) is None


@pytest.mark.parametrize(
    ("shape", "named", "expected"),
    [
        ("manifest", DOCKER_MANIFEST, DOCKER_MANIFEST),
        ("manifest", DOCKER_LIST, OCI_MANIFEST),
        ("index", DOCKER_LIST, DOCKER_LIST),
        ("index", DOCKER_MANIFEST, OCI_INDEX),
        ("index", OCTET_STREAM, OCI_INDEX),
    ],
)
def test_a_descriptor_says_whose_type_it_is_and_the_shape_says_which_kind(
    shape: str, named: str, expected: str
) -> None:
    config = b"{}"
    entry = {"digest": Digest.of(config), "size": len(config)}
    body = json.dumps({"config": entry, "layers": []} if shape == "manifest" else {"manifests": []}).encode()
    root = Digest.of(body)
    index = Index()
    index.put_content(Content(Digest.of(config), len(config)))
    index.put_content(Content(root, len(body)))
    index.put_image(ImageRecord("docker.io/library/app:v1", Descriptor(root, len(body), named)))
    settle(index, {root: body})
    assert index.describe(root) == Descriptor(root, len(body), expected)
