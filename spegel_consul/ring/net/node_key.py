"""The private key of this node, kept in a directory or generated for one run.

The file is the one of Go Spegel (PKCS#8 PEM, Ed25519, private.key in the data directory), so a node that migrates
keeps its peer id.  An unreadable file stops the start, because another key would silently make it another node.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.peers import RingError, peer_id_of_ed25519

KEY_FILE = "private.key"
_SIZE = 64 << 10  # bytes; a key has a few hundred


def load_or_create(data_dir: Path | None) -> Ed25519PrivateKey:
    """The key in ``data_dir``, generated there (mode 0600) if there is none; without ``data_dir`` a key for this run.

    Raises RingError if the file can't be read or written, or is not an Ed25519 key.
    """
    if data_dir is None:
        return Ed25519PrivateKey.generate()
    path = data_dir / KEY_FILE
    try:
        return _parse(foreign_files.read(path, _SIZE), path)
    except FileNotFoundError:
        return _create(path)
    except OSError as exc:
        raise RingError(f"cannot read the private key {path}: {in_words(exc)}") from exc


def peer_id(key: Ed25519PrivateKey) -> bytes:
    """The binary peer id of ``key``; :func:`peers.peer_id_to_text` formats it."""
    return peer_id_of_ed25519(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))


def seed(key: Ed25519PrivateKey) -> bytes:
    """The 32-byte seed of ``key``."""
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def _parse(pem: bytes, path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise RingError(f"{path} is not a private key in PEM format: remove it to get a new identity") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise RingError(f"{path} is not an Ed25519 key: remove it to get a new identity")
    return key


def _create(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        foreign_files.write(path, pem, mode=0o600)  # atomic, even if the machine stops meanwhile
    except OSError as exc:
        raise RingError(f"cannot write the private key {path}: {in_words(exc)}") from exc
    return key
