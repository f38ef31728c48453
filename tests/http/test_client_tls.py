"""The TLS files that the variables of Consul and of Nomad name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spegel_consul.consul.api.consul_settings import ConsulSettings
from spegel_consul.join.sources.nomad_api import NomadSettings

Settings: TypeAlias = ConsulSettings | NomadSettings
FromEnv: TypeAlias = Callable[[Mapping[str, str]], Settings]


def authority(directory: Path, name: str) -> Path:
    """A certificate that signs itself, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    path = directory / f"{name}.pem"
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def names(settings: Settings) -> set[str]:
    found = settings.tls.context().get_ca_certs()
    return {value for each in found for ((field, value),) in each["subject"] if field == "commonName"}


BOTH = pytest.mark.parametrize(
    ("program", "from_env"), [("CONSUL", ConsulSettings.from_env), ("NOMAD", NomadSettings.from_env)]
)


@BOTH
def test_capath_is_every_file_in_it_and_cacert_wins(tmp_path: Path, program: str, from_env: FromEnv) -> None:
    """As in Go: no hashed names are needed, and either takes the place of the system's authorities."""
    (tmp_path / "all" / "more").mkdir(parents=True)
    authority(tmp_path / "all", "one")
    authority(tmp_path / "all" / "more", "two")
    other = authority(tmp_path, "other")
    directory = str(tmp_path / "all")
    assert names(from_env({f"{program}_CAPATH": directory})) == {"one", "two"}
    assert names(from_env({f"{program}_CAPATH": directory, f"{program}_CACERT": str(other)})) == {"other"}


@BOTH
def test_authorities_that_cannot_be_used_are_named(tmp_path: Path, program: str, from_env: FromEnv) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pem").write_text("-----BEGIN nothing")
    for variable, path, reason in [
        ("CAPATH", tmp_path / "empty", "no files in it"),
        ("CAPATH", tmp_path / "nowhere", "No such file"),
        ("CACERT", tmp_path / "nowhere", "No such file"),
        ("CACERT", tmp_path / "junk.pem", "no certificates in PEM form"),
        ("CACERT", tmp_path, "is a directory"),
    ]:
        settings = from_env({f"{program}_{variable}": str(path)})
        with pytest.raises(ValueError) as caught:
            settings.tls.context()
        assert str(caught.value).startswith(f"{program}_{variable}: {path}: ")
        assert reason in str(caught.value)
