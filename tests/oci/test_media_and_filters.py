import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci import media
from spegel_consul.oci.filters import ImageFilter


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"mediaType": media.DOCKER_LIST, "manifests": []}, media.DOCKER_LIST),
        ({"mediaType": media.OCI_MANIFEST}, media.OCI_MANIFEST),
        ({"manifests": []}, media.OCI_INDEX),
        ({"config": {}, "layers": []}, media.OCI_MANIFEST),
        ({"mediaType": "text/html", "config": {}, "layers": []}, media.OCI_MANIFEST),
        ({"config": {}, "layers": None}, media.OCI_MANIFEST),
        ({"manifests": None}, media.OCI_INDEX),
        ({"manifests": None, "config": {}, "layers": []}, media.OCI_MANIFEST),
        ({"manifests": None, "config": {}, "layers": None}, media.OCI_MANIFEST),
        ({"manifests": [], "config": {}, "layers": None}, media.OCI_INDEX),
        ({"config": {}}, None),
        ({"config": None, "layers": None}, None),
        ({"config": {}, "layers": {}}, None),
        ({"config": {}, "layers": ""}, None),
        ({"config": {}, "layers": 0}, None),
        ({"config": {}, "layers": False}, None),
        ({"manifests": {}}, None),
        ({"manifests": False}, None),
        ([], None),
    ],
)
def test_manifest_media_type(document: object, expected: str | None) -> None:
    assert media.manifest_media_type(json.dumps(document).encode()) == expected


INDEX, MANIFEST = {"manifests": []}, {"config": {}, "layers": []}


@pytest.mark.parametrize(
    ("document", "said", "expected"),
    [
        (MANIFEST, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        (INDEX, media.DOCKER_LIST, media.DOCKER_LIST),
        ({**MANIFEST, "mediaType": ""}, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        ({**MANIFEST, "mediaType": None}, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        (MANIFEST, media.DOCKER_LIST, media.OCI_MANIFEST),
        (INDEX, media.DOCKER_MANIFEST, media.OCI_INDEX),
        (MANIFEST, "text/html", media.OCI_MANIFEST),
        ({**MANIFEST, "mediaType": media.OCI_MANIFEST}, media.DOCKER_MANIFEST, media.OCI_MANIFEST),
        ({**MANIFEST, "mediaType": "text/html"}, media.DOCKER_MANIFEST, media.OCI_MANIFEST),
        ({**INDEX, **MANIFEST}, media.DOCKER_MANIFEST, media.OCI_INDEX),
        ([], media.DOCKER_MANIFEST, None),
        ({}, media.DOCKER_MANIFEST, None),
    ],
)
def test_a_type_said_counts_if_the_document_has_none_and_its_shape_agrees(
    document: object, said: str, expected: str | None
) -> None:
    assert media.manifest_media_type(json.dumps(document).encode(), said) == expected


@given(st.binary(max_size=200))
def test_other_bytes_are_not_manifests(body: bytes) -> None:
    assert media.manifest_media_type(body) is None


def test_deep_nesting_is_not_a_manifest() -> None:
    assert media.manifest_media_type(b"[" * 100_000) is None


def test_filter_accepts_by_registry_and_expression() -> None:
    chosen = ImageFilter.build(["https://docker.io", "ghcr.io"], [":latest$", "internal"])
    assert chosen.accepts("docker.io/library/nginx:1.27")
    assert chosen.accepts("ghcr.io/a/b@sha256:00")
    assert not chosen.accepts("docker.io/library/nginx:latest")
    assert not chosen.accepts("ghcr.io/internal/b:1")
    assert not chosen.accepts("quay.io/a/b:1")


def test_other_names_of_a_registry_are_filtered_like_its_own() -> None:
    for written in ("docker.io", "https://index.docker.io", "Registry-1.Docker.io"):
        chosen = ImageFilter.build([written], ["^docker[.]io/internal/"])
        for host in ("docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"):
            assert chosen.accepts(f"{host}/library/nginx:1.27")
            assert not chosen.accepts(f"{host}/internal/app:1")
        assert not chosen.accepts("quay.io/library/nginx:1.27")
        assert not chosen.accepts("doc\N{KELVIN SIGN}er.io/library/nginx:1.27")
    assert ImageFilter.build(["GHCR.io"]).accepts("ghcr.io/a/b:1")


def test_empty_filter_accepts_all() -> None:
    assert ImageFilter().accepts("quay.io/a/b:latest")


@pytest.mark.parametrize("text", ["https://docker.io/v2", "ftp://docker.io", "https://", "a b", ""])
def test_bad_registry_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="must look like https://docker.io"):
        ImageFilter.build([text])


def test_bad_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"registry filter '\(' is not a regular expression"):
        ImageFilter.build(excluded=["("])
