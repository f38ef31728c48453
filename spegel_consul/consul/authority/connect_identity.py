"""``Identity``: a certificate of Consul's authority in use, as TLS contexts for both sides.

It is made once and never changed, so a renewal replaces the whole object, and connections go on with the contexts that
they began with. TLS 1.3 is the minimum, because all peers are sidecars. The authorities are trusted as Consul lists
them, also if one of them is signed by another (Vault below a company's root); intermediates come with the peer's chain.

A new rule about the contexts, or about the time at which a certificate should have been renewed, belongs here.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from spegel_consul.consul.api.client import Leaf, Roots
from spegel_consul.consul.authority.spiffe import names_service
from spegel_consul.disk.pem import Pair
from spegel_consul.lean.dataclass import dataclass

_OVERDUE = 1 / 12
"""Rest of a certificate's lifetime in which it should have been renewed; Consul renews when 10 % to 40 % are left."""


class IdentityError(ValueError):
    """No contexts can be made of Consul's answers; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Identity:
    """``begins`` and ``ends``: the certificate's validity in Unix time."""

    leaf: Leaf
    roots: Roots
    server: ssl.SSLContext
    client: ssl.SSLContext
    begins: float
    ends: float

    @classmethod
    def make(cls, leaf: Leaf, roots: Roots) -> Identity:
        """Takes milliseconds of computation, so it runs in a thread. Raises IdentityError."""
        if not roots.certificates:
            raise IdentityError("Consul lists no authority")
        try:
            begins, ends = (_unix(text) for text in (leaf.valid_after, leaf.valid_before))
            pair = Pair(leaf.chain.encode(), leaf.key.encode())
            server = _context(ssl.PROTOCOL_TLS_SERVER, pair)
            client = _context(ssl.PROTOCOL_TLS_CLIENT, pair)
        except (ssl.SSLError, ValueError) as exc:
            raise IdentityError(f"the certificate from Consul can't be used: {_reason(exc)}") from None
        try:
            for context in (server, client):
                context.load_verify_locations(cadata="\n".join(roots.certificates))
        except (ssl.SSLError, ValueError) as exc:
            raise IdentityError(f"Consul's list of authorities can't be used: {_reason(exc)}") from None
        server.set_alpn_protocols(["http/1.1"])
        server.num_tickets = 0  # peers keep connections, and resume none
        return cls(leaf, roots, server, client, begins, ends)

    def is_valid(self, now: float) -> bool:
        """Whether the certificate has not expired at ``now`` (Unix time)."""
        return now < self.ends

    def is_overdue(self, now: float) -> bool:
        """Whether it should have been renewed, at ``now`` (Unix time)."""
        return self.ends - now < (self.ends - self.begins) * _OVERDUE

    def accepts(self, certificate: Mapping[str, Any] | None, service: str) -> bool:
        """Whether a certificate that one of the contexts has verified is that of ``service``."""
        return names_service(certificate, self.roots.trust_domain, service)


def _context(protocol: int, pair: Pair) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is a URI, and accepts() reads it
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    pair.load(context)
    return context


def _unix(text: str) -> float:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return time.timestamp()


def _reason(exc: Exception) -> str:
    return getattr(exc, "reason", None) or str(exc)
