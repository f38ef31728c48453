import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.errors import DigestInvalid, NameInvalid, OCIError, TagInvalid
from spegel_consul.oci.reference import Reference, check_repository, check_tag

HEX = "ab" * 32

components = st.from_regex(r"[a-z0-9]{1,8}(?:(?:\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
repositories = st.lists(components, min_size=1, max_size=4).map("/".join)
tags = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
registries = st.sampled_from(["docker.io", "localhost:5001", "10.0.0.1:5000", "[2001:db8::1]:5000", "GHCR.io"])


@given(registries, repositories, tags)
def test_full_names_round_trip(registry: str, repository: str, tag: str) -> None:
    reference = Reference.parse(f"{registry}/{repository}:{tag}")
    assert reference == Reference(registry, repository, tag=tag)
    assert str(reference) == reference.key == f"{registry}/{repository}:{tag}"


@given(registries, repositories)
def test_digest_references_are_known_to_the_ring_by_digest_alone(registry: str, repository: str) -> None:
    reference = Reference.parse(f"{registry}/{repository}@sha256:{HEX}")
    assert reference.key == f"sha256:{HEX}"
    assert str(reference) == f"{registry}/{repository}@sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("localhost/app:v1", "localhost/app:v1"),
        ("localhost:5001/o/big", "localhost:5001/o/big:latest"),
        (f"nginx:1.27@sha256:{HEX}", f"docker.io/library/nginx@sha256:{HEX}"),
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
def test_any_text_is_a_reference_or_a_typed_error(text: str) -> None:
    try:
        assert Reference.parse(str(Reference.parse(text))) == Reference.parse(text)
    except OCIError:
        pass


def test_limits_of_length() -> None:
    assert check_tag("t" * 128)
    assert check_repository("a" * 255)
