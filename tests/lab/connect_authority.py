"""An authority in the shape of Consul's: what an agent answers to questions for leaves and for roots."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "11111111-2222-3333-4444-555555555555.consul"
HOURS = 3600.0

Key = ec.EllipticCurvePrivateKey


class _Signer:
    def __init__(self, name: str, trust_domain: str, above: _Signer | None = None) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = certificate_of(name, trust_domain, self, above or self)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


class ConnectAuthority:
    """``intermediate``: leaves come from one, as with Vault and in a secondary datacenter.

    ``company``: the root that Consul lists is itself signed by one that Consul does not list.
    """

    def __init__(self, trust_domain: str = TRUST_DOMAIN, *, intermediate: bool = False, company: bool = False) -> None:
        self.trust_domain = trust_domain
        self._numbers = 0
        self._intermediate = intermediate
        self._roots: list[_Signer] = []
        self._company = _Signer("a company's root", trust_domain) if company else None
        self.rotate()

    def rotate(self) -> None:
        """Sign with a new root from now on; the old ones stay in the list."""
        self._numbers += 1
        self._roots.append(_Signer(f"root {self._numbers}", self.trust_domain, self._company))
        self._signer = self._roots[-1]
        if self._intermediate:
            self._signer = _Signer("intermediate", self.trust_domain, self._roots[-1])

    def exported(self) -> tuple[str, str]:
        """Key and certificate of the root that signs, for a real Consul."""
        root = self._roots[-1]
        key = root.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return key.decode(), root.pem

    def forget(self) -> None:
        """Drop all roots but the one that signs."""
        del self._roots[:-1]

    def roots(self) -> dict[str, Any]:
        """The answer of ``/v1/agent/connect/ca/roots``."""
        rows = [{"RootCert": root.pem, "Active": root is self._roots[-1]} for root in self._roots]
        return {"TrustDomain": self.trust_domain, "Roots": rows}

    def leaf(
        self, service: str = "spegel", *, begins: float = -60.0, ends: float = 72 * HOURS, uris: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """The answer of ``/v1/agent/connect/ca/leaf/<service>``; ``begins`` and ``ends`` in seconds from now."""
        uris = uris or (f"spiffe://{self.trust_domain}/ns/default/dc/dc1/svc/{service}",)
        key, now = ec.generate_private_key(ec.SECP256R1()), time.time()
        at = [datetime.fromtimestamp(int(now + offset), UTC) for offset in (begins, ends)]
        signer = self._signer
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(signer.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(at[0])
            .not_valid_after(at[1])
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris]), critical=True
            )
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
            .sign(signer.key, hashes.SHA256())
        )
        chain = certificate.public_bytes(serialization.Encoding.PEM).decode()
        if self._intermediate:
            chain += signer.pem
        return {
            "SerialNumber": f"{certificate.serial_number:x}",
            "CertPEM": chain,
            "PrivateKeyPEM": key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            ).decode(),
            "Service": service,
            "ServiceURI": uris[0],
            "ValidAfter": at[0].strftime("%Y-%m-%dT%H:%M:%SZ"),
            "ValidBefore": at[1].strftime("%Y-%m-%dT%H:%M:%SZ"),
        }


def certificate_of(name: str, trust_domain: str, subject: _Signer, above: _Signer) -> x509.Certificate:
    """A certificate of an authority, signed by the one above it, which is itself for a root."""
    issuer = above.certificate.subject if above is not subject else _named(name)
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(issuer)
        .public_key(subject.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(subject.key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.key.public_key()), critical=False)
        .sign(above.key, hashes.SHA256())
    )


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
