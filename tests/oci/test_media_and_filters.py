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
        ({"config": {}}, None),
        ([], None),
    ],
)
def test_manifest_media_type(document: object, expected: str | None) -> None:
    assert media.manifest_media_type(json.dumps(document).encode()) == expected


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


def test_empty_filter_accepts_all() -> None:
    assert ImageFilter().accepts("quay.io/a/b:latest")


@pytest.mark.parametrize("text", ["https://docker.io/v2", "ftp://docker.io", "https://", "a b", ""])
def test_bad_registry_says_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match="must look like https://docker.io"):
        ImageFilter.build([text])


def test_bad_expression_is_named() -> None:
    with pytest.raises(ValueError, match=r"registry filter '\(' is not a regular expression"):
        ImageFilter.build(excluded=["("])
