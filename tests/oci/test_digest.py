import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import DigestInvalid


@given(st.binary(max_size=64), st.sampled_from(["sha256", "sha384", "sha512"]))
def test_digest_of_data_is_what_hashlib_says(data: bytes, algorithm: str) -> None:
    digest = Digest.of(data, algorithm)
    assert digest == f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
    assert Digest(str(digest)) == digest
    assert (digest.algorithm, digest.encoded) == tuple(digest.split(":"))
    hasher = digest.hasher()
    hasher.update(data)
    assert hasher.hexdigest() == digest.encoded


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no algorithm"),
        ("abc", "has no algorithm"),
        ("md5:" + "0" * 32, "not supported"),
        ("sha256:" + "0" * 63, "64 lower-case hex"),
        ("sha256:" + "0" * 65, "64 lower-case hex"),
        ("sha256:" + "A" * 64, "64 lower-case hex"),
        ("sha256:" + "0" * 63 + "\n", "64 lower-case hex"),
        ("sha256:" + "0" * 64 + "\n", "64 lower-case hex"),
        ("sha512:" + "0" * 64, "128 lower-case hex"),
        ("SHA256:" + "0" * 64, "not supported"),
    ],
)
def test_malformed_digests_say_what_is_wrong(text: str, reason: str) -> None:
    with pytest.raises(DigestInvalid, match=reason):
        Digest(text)


@given(st.text(max_size=200))
def test_any_text_is_a_digest_or_a_typed_error(text: str) -> None:
    try:
        assert Digest(text) == text
    except DigestInvalid as exc:
        assert len(exc.message) < 500
