# A runtime's last resort for docker.io is https://registry-1.docker.io, and no configuration can change that for Docker
# before 28.  So the daemons under test get another hosts file, in mounts of their own, and another set of authorities.

"""A registry that is docker.io, for daemons that are started so that they believe it."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.network import Port
from lab.registry import Registry

HOST = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class DockerIo:
    """The registry and what makes a daemon believe in it: an entry in its hosts file, and a certificate."""

    registry: Registry
    hosts: Path
    certificate: Path

    @classmethod
    def make(cls, port: Port, directory: Path) -> DockerIo:
        directory.mkdir(parents=True)
        certificate, key, hosts = directory / "cert.pem", directory / "key.pem", directory / "hosts"
        _self_signed(certificate, key)
        hosts.write_text(f"127.0.0.1 localhost\n{port.ip} {HOST}\n")
        return cls(Registry(port, directory, 443, tls=(certificate, key)), hosts, certificate)

    def believed(self, argv: Sequence[str | Path]) -> list[str | Path]:
        """The command line that starts ``argv`` with our hosts file, in mounts that are private already."""
        script = f'mount --bind {shlex.quote(str(self.hosts))} /etc/hosts && exec "$@"'
        return ["env", f"SSL_CERT_FILE={self.certificate}", "sh", "-c", script, "sh", *argv]


def _self_signed(certificate: Path, key_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
