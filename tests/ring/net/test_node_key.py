import hashlib
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from spegel_consul.peers import RingError, peer_id_from_text, peer_id_to_text
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.net.node_key import load_or_create, peer_id, seed

# the first secret key of RFC 8032, section 7.1, in the form that openssl and Go's crypto/x509 write
PEM = b"""-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
"""


def test_the_key_is_made_once_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "data" / "ring"
    key = load_or_create(directory)
    path = directory / "private.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert seed(load_or_create(directory)) == seed(key)
    assert [entry.name for entry in directory.iterdir()] == ["private.key"]


def test_without_a_directory_each_run_has_its_own_key() -> None:
    assert seed(load_or_create(None)) != seed(load_or_create(None))


def test_a_file_that_others_wrote_gives_the_same_peer_id(tmp_path: Path) -> None:
    (tmp_path / "private.key").write_bytes(PEM)
    key = load_or_create(tmp_path)
    theirs = ID.from_pubkey(create_new_key_pair(seed(key)).public_key)
    assert peer_id(key) == theirs.to_bytes()
    assert peer_id_to_text(peer_id(key)) == theirs.to_base58()
    assert peer_id_from_text(theirs.to_base58()) == theirs.to_bytes()


@pytest.mark.parametrize("content", [b"", b"garbage", PEM[:60], b"\xff" * 100, PEM.replace(b"MC4C", b"AAAA")])
def test_a_file_that_is_no_key_stops_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "private.key"
    path.write_bytes(content)
    with pytest.raises(RingError, match=r"private\.key is not a private key") as caught:
        load_or_create(tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_another_kind_of_key_stops_the_start(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    (tmp_path / "private.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(RingError, match="not an Ed25519 key"):
        load_or_create(tmp_path)


def test_what_cannot_be_read_or_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "private.key").mkdir()
    with pytest.raises(RingError, match="cannot read the private key"):
        load_or_create(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RingError, match="the private key"):
        load_or_create(tmp_path / "file" / "below")


@given(st.binary(min_size=1, max_size=64))
def test_base58_goes_both_ways(raw: bytes) -> None:
    assert peer_id_from_text(peer_id_to_text(raw)) == raw


@given(st.text(max_size=200))
def test_any_text_is_a_peer_id_or_a_typed_error(text: str) -> None:
    try:
        peer_id_from_text(text)
    except RingError as exc:
        assert len(str(exc)) < 500


def test_keys_are_those_of_spegel() -> None:
    key = dht_key("docker.io/library/nginx:1.27")
    assert key == b"\x12\x20" + hashlib.sha256(b"docker.io/library/nginx:1.27").digest()
    assert position(key) == int.from_bytes(hashlib.sha256(key).digest(), "big")
