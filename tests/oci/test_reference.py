import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid, NameInvalid, OCIError, TagInvalid
from spegel_consul.oci.reference import Reference, check_registry, check_repository, check_tag

HEX = "ab" * 32

components = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
registries = st.sampled_from(["docker.io", "localhost:5001", "10.0.0.1:5000", "[2001:db8::1]:5000", "ghcr.io"])


@given(registries, repositories, tags)
def test_full_names_round_trip(registry: str, repository: str, tag: str) -> None:
    reference = Reference.parse_full(f"{registry}/{repository}:{tag}")
    assert reference is not None
    assert reference == Reference(registry, repository, tag=tag)
    assert str(reference) == reference.key == f"{registry}/{repository}:{tag}"


@given(registries, repositories)
def test_digest_references_are_known_to_the_ring_by_digest_alone(registry: str, repository: str) -> None:
    reference = Reference.parse_full(f"{registry}/{repository}@sha256:{HEX}")
    assert reference is not None
    assert reference.key == f"sha256:{HEX}"
    assert str(reference) == f"{registry}/{repository}@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("docker.io/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
        (f"docker.io/nginx@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        ("ghcr.io/nginx", "ghcr.io/nginx:latest"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("localhost/app:v1", "localhost/app:v1"),
        ("localhost:5001/o/big", "localhost:5001/o/big:latest"),
        (f"nginx:1.27@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
        ("index.docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("Registry-1.Docker.IO/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("GHCR.io/org/app:v1", "ghcr.io/org/app:v1"),
        ("LocalHost:5001/o/big:v1", "localhost:5001/o/big:v1"),
    ],
)
def test_familiar_names(text: str, full: str) -> None:
    assert str(Reference.parse(text)) == full


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("docker.io/..", NameInvalid),
        ("docker.io/library/../x", NameInvalid),
        ("docker.io/Library/nginx", NameInvalid),
        ("", NameInvalid),
        ("docker.io/" + "a" * 256, NameInvalid),
        ("docker.io/" + "a" * 250, NameInvalid),
        ("a" * 250, NameInvalid),
        ("docker.io/library/nginx:" + "t" * 129, TagInvalid),
        ("docker.io/library/nginx:-x", TagInvalid),
        ("docker.io/library/nginx@sha256:xyz", DigestInvalid),
        ("exa mple.com/x", NameInvalid),
    ],
)
def test_malformed_names(text: str, error: type[OCIError]) -> None:
    with pytest.raises(error):
        Reference.parse(text)


@given(st.text(max_size=300))
@example("A/0")
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    try:
        assert Reference.parse(str(Reference.parse(text))) == Reference.parse(text)
    except OCIError:
        pass


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("docker.io", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("REGISTRY-1.docker.IO", "docker.io"),
        ("Quay.io", "quay.io"),
        ("LOCALHOST", "localhost"),
        ("Registry", "Registry"),
        ("index.docker.io:5000", "index.docker.io:5000"),
        ("index.docker.io.example.com", "index.docker.io.example.com"),
        ("[2001:DB8::1]:5000", "[2001:db8::1]:5000"),
    ],
)
def test_a_registry_has_one_name(given: str, name: str) -> None:
    assert check_registry(given) == name
    assert check_registry(name) == name


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        ("index.docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
        (f"GHCR.io/app@sha256:{HEX}", f"ghcr.io/app@sha256:{HEX}"),
        ("Registry/app:v1", "Registry/app:v1"),
        ("docker.io/nginx:1.27", "docker.io/nginx:1.27"),
        ("nginx:1.27", None),
        ("library/nginx:1.27", None),
        ("docker.io/library/nginx", None),
        (f"docker.io/library/nginx:1.27@sha256:{HEX}", None),
        ("docker.io/Library/nginx:1.27", None),
    ],
)
def test_full_names_are_those_that_need_no_defaults(text: str, full: str | None) -> None:
    found = Reference.parse_full(text)
    assert (str(found) if found is not None else None) == full


def test_a_digest_without_a_registry() -> None:
    reference = Reference(None, "library/app", digest=Digest(f"sha256:{HEX}"))
    assert str(reference) == f"library/app@sha256:{HEX}"
    assert reference.key == f"sha256:{HEX}"


def test_limits_of_length() -> None:
    assert check_tag("t" * 128)
    assert check_repository("a" * 255)
