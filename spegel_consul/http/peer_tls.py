"""``PeerTls``: the door between connections of the registry and the source of their certificates.

A connection needs few things: a context for each side, the answer whether a verified certificate is that of a peer, and
whose connections are encrypted. Certificates from files are one implementation (:class:`spegel_consul.http.tls.Tls`),
certificates of Consul's authority the other. A context is never changed; a renewed certificate is a new context, so
connections that stand go on with the certificate that they began with.

A new rule about the encryption between peers that holds for all certificates belongs here.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Mapping
from enum import Enum
from typing import Any, Protocol

import trio

from spegel_consul.bounded_dict import BoundedDict

_MOST_PEERS = 4096


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


class PeerLinks:
    """Whether the last connection from or to a peer was encrypted, by the peer's IP address."""

    def __init__(self) -> None:
        self._encrypted: BoundedDict[str, bool] = BoundedDict(_MOST_PEERS)

    def note(self, host: str, encrypted: bool) -> None:
        """Remember a connection that was used."""
        self._encrypted[host] = encrypted

    def encrypted(self, host: str) -> bool | None:
        """None if there was no connection yet."""
        return self._encrypted.get(host)


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
