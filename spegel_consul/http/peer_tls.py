"""``PeerTls``: the door between connections of the registry and the source of their certificates.

A connection needs few things: a context for each side, the answer whether a verified certificate is that of a peer, and
whose connections are encrypted. Certificates from files are one implementation (:class:`spegel_consul.http.tls.Tls`),
certificates of Consul's authority the other. A context is never changed; a renewed certificate is a new context, so
connections that stand go on with the certificate that they began with.

A certificate that is refused must be visible, because with ``Encryption.PREFER`` plain text hides it. Clocks that
differ are the usual reason, and then all peers are refused at once. So a few of them are named, not each.

A new rule about the encryption between peers that holds for all certificates belongs here.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Mapping
from enum import Enum
from typing import Any, Protocol

import structlog
import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.lean.dataclass import dataclass

log = structlog.get_logger(__name__)

_MOST_PEERS = 4096
_MOST_NAMED = 5  # peers with one fault
_STANDS = 3600.0  # seconds for which a fault is shown, and not logged again, after it was met last


class Encryption(Enum):
    """Whose connections to the registry's port are encrypted.

    In ``PREFER`` and ``REQUIRE`` the clients of this machine, which are its runtimes and Consul's check, are served in
    plain text too, so that their blobs need no encryption.
    """

    ALL = "all"
    """All connections, those of this machine's own runtime included: the port speaks TLS and nothing else."""
    PREFER = "prefer"
    """Those of peers that speak TLS. Others are served, and asked, in plain text."""
    REQUIRE = "require"
    """Those of all other machines. Others are refused, and not asked."""


@dataclass(frozen=True, slots=True)
class CertificateFault:
    """The reason why a certificate between two nodes is refused, and what an operator does about it."""

    problem: str
    fix: str


_CLOCKS = "compare the clocks of both nodes"
NOT_YET_VALID = CertificateFault("the peer's certificate is not yet valid", _CLOCKS)
EXPIRED = CertificateFault(
    "the peer's certificate has expired", f"{_CLOCKS}; if they agree, the peer's status has the reason"
)
OTHER_AUTHORITY = CertificateFault(
    "the peer's certificate is not signed by an authority that this node trusts",
    "both nodes need certificates of one authority: the same Consul cluster, or one --tls-ca-file",
)
OTHER_ADDRESS = CertificateFault(
    "the peer's certificate does not name its address", "issue one that names the node's advertised address"
)
OTHER_SERVICE = CertificateFault(
    "the peer's certificate is that of another service or trust domain",
    "look which program has this address, and whether its Consul has the same authority",
)
REFUSES_OURS = CertificateFault(
    "the peer refuses this node's certificate", f"{_CLOCKS}; the peer's log has the reason (no TLS with a peer)"
)

_BY_CODE = {
    9: NOT_YET_VALID,
    10: EXPIRED,
    **dict.fromkeys((2, 7, 18, 19, 20, 21), OTHER_AUTHORITY),
    **dict.fromkeys((62, 64), OTHER_ADDRESS),
}
"""By OpenSSL's result of a verification (``X509_V_ERR_…``)."""
_ALERT = re.compile(r"ALERT_(?:BAD_CERTIFICATE|CERTIFICATE_\w+|UNSUPPORTED_CERTIFICATE|UNKNOWN_CA)$")


def fault_of(exc: BaseException) -> CertificateFault | None:
    """The fault of a certificate that ended a TLS connection; None if it ended for another reason."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        other = CertificateFault(f"the peer's certificate is not valid: {exc.verify_message}", "issue another one")
        return _BY_CODE.get(exc.verify_code, other)
    if isinstance(exc, ssl.SSLError) and _ALERT.search(exc.reason or ""):
        return REFUSES_OURS
    return None


class PeerLinks:
    """Whether the last connection from or to a peer was encrypted, and why not, by the peer's IP address."""

    def __init__(self) -> None:
        self._encrypted: BoundedDict[str, bool] = BoundedDict(_MOST_PEERS)
        self._faults: dict[CertificateFault, BoundedDict[str, float]] = {}  # time of the last one, the oldest first

    def note(self, host: str, encrypted: bool) -> None:
        """Remember a connection that was used."""
        self._encrypted[host] = encrypted

    def encrypted(self, host: str) -> bool | None:
        """None if there was no connection yet, or if the last one was refused."""
        return self._encrypted.get(host)

    def refused(self, host: str, fault: CertificateFault) -> None:
        """Report a connection that failed, and log the peer and the fault once, while few peers have this fault."""
        now = trio.current_time()
        self._encrypted.pop(host, None)
        peers = self._faults.setdefault(fault, BoundedDict(_MOST_PEERS))
        while peers and now - peers[oldest := next(iter(peers))] > _STANDS:
            del peers[oldest]
        known = host in peers
        peers[host] = now
        if known or len(peers) > _MOST_NAMED + 1:
            return
        if len(peers) <= _MOST_NAMED:
            log.warning("no TLS with a peer", address=host, problem=fault.problem, fix=fault.fix)
        else:
            log.warning("no TLS with more peers, status has their number", problem=fault.problem, fix=fault.fix)

    def problems(self) -> list[str]:
        """One line for people for each fault of the last hour, without peers whose connections are encrypted again."""
        found = []
        for fault, peers in self._faults.items():
            now = trio.current_time()
            hosts = [host for host, at in peers.items() if now - at <= _STANDS and not self._encrypted.get(host)]
            if hosts:
                more = f" and {len(hosts) - _MOST_NAMED} more" if len(hosts) > _MOST_NAMED else ""
                found.append(f"no TLS with {', '.join(hosts[:_MOST_NAMED])}{more}: {fault.problem}; {fault.fix}")
        return found


class PeerTls(Protocol):
    """Certificates for connections between peers. A context is None while there is no valid certificate."""

    @property
    def encryption(self) -> Encryption:
        """Whose connections are encrypted."""
        ...

    @property
    def links(self) -> PeerLinks:
        """The connections so far."""
        ...

    @property
    def problem(self) -> str | None:
        """One line for people: there is no certificate, or it is not renewed; None if all is well."""
        ...

    @property
    def expires(self) -> float | None:
        """Unix time at which the certificate in use expires; None if that is not known."""
        ...

    @property
    def verifies_clients(self) -> bool:
        """Whether a client over TLS needs a certificate."""
        ...

    def server(self) -> ssl.SSLContext | None:
        """The context for an accepted connection."""
        ...

    def client(self) -> ssl.SSLContext | None:
        """The context for a connection to a peer. It checks the peer's address if ``check_hostname`` is set."""
        ...

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a certificate that a context has verified is that of a peer.

        ``certificate``: as :meth:`ssl.SSLSocket.getpeercert` returns it; None if there is none.
        """
        ...

    def run(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]:
        """Follow the source of the certificates until cancelled."""
        ...


def is_plain_to_own(tls: PeerTls | None) -> bool:
    """Whether clients on this machine are served in plain text."""
    return tls is None or tls.encryption is not Encryption.ALL
