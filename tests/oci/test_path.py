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


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("ghcr.io/org/app", "ghcr.io/org/app"),
        ("docker.io/library/nginx", "docker.io/library/nginx"),
        ("docker.io/nginx", "docker.io/library/nginx"),
        ("registry-1.docker.io/nginx", "docker.io/library/nginx"),
        ("docker.io/grafana/grafana", "docker.io/grafana/grafana"),
        ("registry_5443/org/app", "registry:5443/org/app"),
        ("registry:5443/app", "registry:5443/app"),
        ("registry.example.com_5443/app", "registry.example.com:5443/app"),
        ("10.0.0.7_5000/app", "10.0.0.7:5000/app"),
        ("localhost/app", "localhost/app"),
        ("localhost_5000/app", "localhost:5000/app"),
        ("[fd00::7]:5000/app", "[fd00::7]:5000/app"),
        ("[fd00::7]/app", "[fd00::7]/app"),
        ("gcr.io/example.com/project/app", "gcr.io/example.com/project/app"),
    ],
)
def test_a_registry_in_the_path(name: str, full: str) -> None:
    registry, _, repository = full.partition("/")
    expected = Reference(registry, repository, tag="v1")
    assert parse_content_path(f"/v2/{name}/manifests/v1") == ContentRequest(Kind.MANIFEST, expected, False)
    quoted = urllib.parse.quote(name, safe="")
    for kind, each in (("blobs", quoted), ("manifests", name)):
        request = parse_content_path(f"/v2/{each}/{kind}/{DIGEST}")
        assert request == ContentRequest(Kind(kind), Reference(registry, repository, digest=DIGEST), False)


@pytest.mark.parametrize(
    "name",
    [
        "grafana/grafana",
        "user_x/app",
        "user_/app",
        "a_b_80/app",
        "user_99999/app",
        "user_0/app",
        "user_080/app",
        "my.app",
    ],
)
def test_names_that_have_no_registry_in_front(name: str) -> None:
    with pytest.raises((ManifestUnknown, NameInvalid)):
        parse_content_path(f"/v2/{name}/manifests/v1")


@pytest.mark.parametrize(
    "name",
    [
        "GHCR.io/org/app",
        "Registry_5443/app",
        "ghcr..io/app",
        ".ghcr.io/app",
        "../app",
        "ghcr.io/../app",
        "ghcr.io/Org/app",
        "ghcr.io/org//app",
        "ghcr.io_99999/app",
        "ghcr.io_0/app",
        "ghcr.io_x/app",
        "ghcr.io:/app",
        "ghcr.io:x/app",
        "registry:99999/app",
        "registry:080/app",
        "registry:5000:5000/app",
        "[fd00::7]:x/app",
        "gh%63r.io%2f%2e%2e/app",
        "Kdocker.io/app",
        "ghcr.io/" + "a" * 256,
    ],
)
def test_malformed_registries_in_the_path(name: str) -> None:
    for path in (f"/v2/{name}/manifests/v1", f"/v2/{name}/blobs/{DIGEST}"):
        with pytest.raises(NameInvalid):
            parse_content_path(path)


def test_a_registry_beside_the_path_counts_before_one_in_the_path() -> None:
    for query, header in (("ns=quay.io", ""), ("", "quay.io"), ("ns=quay.io", "docker.io")):
        request = parse_content_path("/v2/ghcr.io/app/manifests/v1", query, header)
        assert request == ContentRequest(Kind.MANIFEST, Reference("quay.io", "ghcr.io/app", tag="v1"))


def test_a_client_of_docker_hub_has_users_without_dots_only() -> None:
    for name, full in (
        ("ghcr.io/app", "ghcr.io/app:v1"),
        ("host:80/app", "host:80/app:v1"),
        ("localhost/app", "docker.io/localhost/app:v1"),
        ("user_5443/app", "docker.io/user_5443/app:v1"),
    ):
        assert parse_content_path(f"/v2/{name}/manifests/v1", default="docker.io").key == full


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
