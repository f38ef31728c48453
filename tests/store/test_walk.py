from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import DOCKER_LIST, DOCKER_MANIFEST, MAX_MANIFEST_SIZE, OCI_INDEX, OCI_MANIFEST
from spegel_consul.store.manifest_walk import ManifestInvalid, parse

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def entry(text: str, media_type: str | None = LAYER, **more: object) -> dict[str, object]:
    named = {"mediaType": media_type} if media_type else {}
    return {**named, "digest": Digest.of(text.encode()), "size": len(text), **more}


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_manifest_needs_its_config_and_layers(media_type: str) -> None:
    document = parse(encode({"mediaType": media_type, "config": entry("c"), "layers": [entry("a"), entry("b")]}))
    assert (document.media_type, document.declared, document.is_index) == (media_type, True, False)
    assert [child.digest for child in document.needed] == [Digest.of(text) for text in (b"c", b"a", b"b")]
    assert document.extras == ()


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_index_has_manifests_with_or_without_platforms(media_type: str) -> None:
    entries = [entry("a", OCI_MANIFEST), entry("b", None), entry("c", OCI_MANIFEST, platform={"os": "linux"})]
    document = parse(encode({"mediaType": media_type, "manifests": entries}))
    assert (document.media_type, document.is_index) == (media_type, True)
    assert [child.media_type for child in document.needed] == [OCI_MANIFEST] * 3


def test_type_is_guessed_from_the_shape() -> None:
    index, manifest = parse(encode({"manifests": []})), parse(encode({"config": entry("c"), "layers": []}))
    assert (index.media_type, index.declared) == (OCI_INDEX, False)
    assert (manifest.media_type, manifest.declared) == (OCI_MANIFEST, False)


@pytest.mark.parametrize("media_type", [None, OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_without_layers_is_one(media_type: str | None) -> None:
    """Go writes null for a list without entries; Docker 28 makes such an image from scratch."""
    document = parse(encode({"mediaType": media_type, "config": entry("c"), "layers": None}))
    assert (document.media_type, document.is_index) == (media_type or OCI_MANIFEST, False)
    assert [child.digest for child in document.needed] == [Digest.of(b"c")]


@pytest.mark.parametrize("media_type", [None, OCI_INDEX, DOCKER_LIST])
def test_an_index_without_manifests_is_one(media_type: str | None) -> None:
    document = parse(encode({"mediaType": media_type, "manifests": None}))
    assert (document.media_type, document.is_index) == (media_type or OCI_INDEX, True)
    assert document.needed == ()


def test_attestations_make_no_platform() -> None:
    attestation = entry("a", OCI_MANIFEST, annotations={"vnd.docker.reference.type": "attestation-manifest"})
    document = parse(encode({"manifests": [entry("m", OCI_MANIFEST), attestation]}))
    assert [child.digest for child in document.needed] == [Digest.of(b"m")]
    assert [child.digest for child in document.extras] == [Digest.of(b"a")]


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
def test_foreign_layers_are_not_needed(media_type: str) -> None:
    layers = [entry("windows", media_type, urls=["https://example.org/"]), entry("own")]
    document = parse(encode({"config": entry("c"), "layers": layers}))
    assert [child.digest for child in document.needed] == [Digest.of(b"c"), Digest.of(b"own")]
    assert [child.digest for child in document.extras] == [Digest.of(b"windows")]


def test_odd_entries_of_an_index_are_left_out() -> None:
    odd = [None, 1, {}, {"digest": "sha256:x", "size": 1}, {"digest": Digest.of(b""), "size": -1}, entry("ok"), []]
    assert [child.digest for child in parse(encode({"manifests": odd})).needed] == [Digest.of(b"ok")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        encode({"config": entry("c"), "layers": [None]}),
        encode({"config": {}, "layers": []}),
        encode({"mediaType": OCI_MANIFEST}),
        encode({"mediaType": OCI_MANIFEST, "config": entry("c")}),
        encode({"mediaType": OCI_MANIFEST, "config": None, "layers": None}),
        *(
            encode({"mediaType": media_type, "config": entry("c"), "layers": layers})
            for media_type in (None, OCI_MANIFEST)
            for layers in (5, 0, False, "", {})
        ),
        b" " * (MAX_MANIFEST_SIZE + 1),
    ],
)
def test_what_is_no_manifest_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mediaType", "manifests", "layers", "config", "digest", "size", "annotations"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_parsed_or_refused(document: object) -> None:
    try:
        parse(encode(document))
    except ManifestInvalid:
        pass
