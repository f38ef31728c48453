# TLS of the benchmark: one certificate for all servers, which is its own authority, and the client that asks over TLS.
# All get the same protocol and cipher, because Go and OpenSSL choose them by processor, and a cipher is a fifth of the
# cost: own blobs by the client, which offers no other, mirrored ones by the neighbour, which takes no other.

"""The certificate of the servers, and the client for blobs over TLS."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.content import MIB, Content
from bench.process import Server, ServerError
from bench.workload import Workload

SUITE = "TLS_AES_128_GCM_SHA256"
_GRACE = 60.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """PEM files; ``cert`` is the authority too."""

    cert: Path
    key: Path

    @classmethod
    def make(cls, directory: Path) -> Certificate:
        """A certificate with a P-256 key for 127.0.0.1, in ``directory``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        made = cls(directory / "tls.crt", directory / "tls.key")
        made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        made.key.touch(mode=0o600)
        made.key.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
        return made


@dataclass(slots=True)
class TlsClient:
    """Runs the client that asks over TLS, on one connection; ``cipher`` is what the last answer was encrypted with."""

    binary: Path
    content: Content
    cipher: str = ""

    def run(self, server: Server, workload: Workload, seconds: float, requests: int = 0) -> dict[str, float]:
        """What it printed. Raises ServerError."""
        piece = self.content.pieces[workload.of]
        # a large body is dropped without being decrypted, or the client would be what limits it
        how = "drop" if piece.size > MIB else "decrypt"
        command = [str(self.binary), str(server.port), f"{seconds:g}", piece.target, str(piece.size), how]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE)
        if done.returncode != 0:
            server.check()
            raise ServerError(f"{server.name}: the client failed: {done.stderr.strip()}")
        found = json.loads(done.stdout)
        self.cipher = str(found.pop("cipher"))
        return {name: float(value) for name, value in found.items()}
