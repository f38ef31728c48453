import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid, ManifestUnknown, NameInvalid, NameUnknown, OCIError, TagInvalid
from spegel_consul.oci.path import ContentRequest, Kind, parse_content_path
from spegel_consul.oci.reference import Reference

DIGEST = Digest("sha256:" + "ab" * 32)


@pytest.mark.parametrize(
    ("path", "query", "kind", "reference"),
    [
        (
            "/v2/library/app/manifests/v1",
            "ns=docker.io",
            Kind.MANIFEST,
            Reference("docker.io", "library/app", tag="v1"),
        ),
        (
            "/v2/library/app/manifests/v1",
            "ns=&n%73=Index.docker.IO&ns=docker.io",
            Kind.MANIFEST,
            Reference("docker.io", "library/app", tag="v1"),
        ),
        (
            "/v2/o/big/manifests/v1",
            "ns=localhost%3A5001",
            Kind.MANIFEST,
            Reference("localhost:5001", "o/big", tag="v1"),
        ),
        (f"/v2/app/manifests/{DIGEST}", "ns=quay.io", Kind.MANIFEST, Reference("quay.io", "app", digest=DIGEST)),
        (f"/v2/app/blobs/{DIGEST}", "ns=quay.io", Kind.BLOB, Reference("quay.io", "app", digest=DIGEST)),
        (f"/v2/app/blobs/{urllib.parse.quote(DIGEST)}", "", Kind.BLOB, Reference(None, "app", digest=DIGEST)),
        (f"/v2/a/blobs/b/blobs/{DIGEST}", "", Kind.BLOB, Reference(None, "a/blobs/b", digest=DIGEST)),
    ],
)
def test_paths_that_runtimes_send(path: str, query: str, kind: Kind, reference: Reference) -> None:
    assert parse_content_path(path, query) == ContentRequest(kind, reference)


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        ("/v2/", "", NameUnknown),
        ("/v2/app/tags/list", "", NameUnknown),
        ("/v3/app/manifests/v1", "", NameUnknown),
        ("/v2/app/manifests/", "", NameUnknown),
        ("/v2/../manifests/v1", "", NameInvalid),
        ("/v2/a/%2e%2e/b/manifests/v1", "", NameInvalid),
        ("/v2/a/%2e%2e%2fb/manifests/v1", "", NameInvalid),
        ("/v2/%252e/manifests/v1", "", NameInvalid),
        ("/v2/App/manifests/v1", "", NameInvalid),
        ("/v2/a//b/manifests/v1", "", NameInvalid),
        ("/v2/a/manifests/%ff", "", NameInvalid),
        ("/v2/app/manifests/" + "t" * 129, "", TagInvalid),
        ("/v2/app/manifests/md5:" + "0" * 32, "", DigestInvalid),
        ("/v2/app/blobs/latest", "", DigestInvalid),
        ("/v2/app/blobs/sha256:../../etc/passwd", "", NameUnknown),
        ("/v2/app/blobs/sha256:%2e%2e", "", DigestInvalid),
        ("/v2/app/manifests/v1", "ns=http%3A%2F%2Fevil", NameInvalid),
        ("/v2/app/manifests/v1", "ns=docker.io&ns=quay.io", NameInvalid),
        (f"/v2/app/blobs/{DIGEST}", "ns=docker.io&ns=quay.io", NameInvalid),
        ("/v2/app/manifests/v1", "", ManifestUnknown),
        ("/v2/app/manifests/v1", "ns=", ManifestUnknown),
        ("/v2/app/manifests/v1", "NS=docker.io", ManifestUnknown),
        ("/v2/app/manifests/v1", "ns%3Ddocker.io", ManifestUnknown),
        ("/v2/app/manifests/v1", "&".join(f"a{i}=b" for i in range(30)), NameInvalid),
    ],
)
def test_malformed_paths(path: str, query: str, error: type[OCIError]) -> None:
    with pytest.raises(error):
        parse_content_path(path, query)


@pytest.mark.parametrize("path", ["/v2/library/app/manifests/v1", f"/v2/library/app/blobs/{DIGEST}"])
@pytest.mark.parametrize(
    ("query", "header", "default", "registry"),
    [
        ("ns=quay.io", "", None, "quay.io"),
        ("", "quay.io", None, "quay.io"),
        ("", "Index.Docker.io", None, "docker.io"),
        ("", "", "docker.io", "docker.io"),
        ("", "quay.io", "docker.io", "quay.io"),
        ("ns=ghcr.io", "quay.io", "docker.io", "ghcr.io"),
        ("ns=ghcr.io", "not a registry", None, "ghcr.io"),
    ],
)
def test_the_registry_is_the_querys_else_the_headers_else_the_clients(
    path: str, query: str, header: str, default: str | None, registry: str
) -> None:
    assert parse_content_path(path, query, header, default).reference.registry == registry


@pytest.mark.parametrize("header", ["docker.io, quay.io", "http://docker.io", "docker.io/x", "\xe9", " "])
def test_a_malformed_header_is_refused(header: str) -> None:
    for path in ("/v2/library/app/manifests/v1", f"/v2/library/app/blobs/{DIGEST}"):
        with pytest.raises(NameInvalid):
            parse_content_path(path, "", header, "docker.io")


def test_who_asks_for_a_tag_without_a_registry_hears_what_to_send() -> None:
    with pytest.raises(ManifestUnknown, match=r"ns=.*OCI-Namespace"):
        parse_content_path("/v2/library/app/manifests/v1")


@given(st.text(max_size=200), st.text(max_size=100))
def test_any_path_is_a_request_or_a_typed_error(path: str, query: str) -> None:
    for candidate in (path, f"/v2/{path}/manifests/v1", f"/v2/app/blobs/{path}", urllib.parse.quote(path)):
        try:
            parsed = parse_content_path(candidate, query)
        except OCIError as exc:
            assert exc.body().startswith(b'{"errors"')
        else:
            assert ".." not in parsed.reference.repository
            assert parsed.key
