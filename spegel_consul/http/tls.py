"""TLS contexts for the registry's port and for peers, which follow their files.

Other programs renew the files (Vault, cert-manager, a cron job). So a task checks them once a second, in a thread. If
the files are incomplete, invalid or on a disk that hangs, the old contexts stay in use. A new rule about the TLS
between nodes belongs here.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
import trio

from spegel_consul.disk import foreign_files as foreign
from spegel_consul.disk import pem
from spegel_consul.disk.followed_file import FollowedFile, stamps
from spegel_consul.error_words import in_words
from spegel_consul.http.peer_tls import Encryption, PeerLinks
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.log import ProblemReport

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0  # seconds


class TlsError(ValueError):
    """The files can't be used; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this node's certificate with its chain, its key, and the authorities of peers' certificates.

    Without ``ca`` the system's authorities are used. ``verify_clients``: refuse clients without a certificate.
    """

    cert: Path
    key: Path
    ca: Path | None = None
    verify_clients: bool = False


class Tls:
    """Contexts made from ``files``, which :meth:`run` follows. Raises TlsError if the first load fails.

    Implements :class:`spegel_consul.http.peer_tls.PeerTls`.
    """

    def __init__(self, files: TlsFiles, encryption: Encryption = Encryption.ALL) -> None:
        self.encryption = encryption
        self.links = PeerLinks()
        self.expires: float | None = None  # of files, which other programs watch
        self._files = files
        self._followed = FollowedFile(
            lambda: stamps(path for path in (files.cert, files.key, files.ca) if path is not None),
            lambda: (_server(files), _client(files)),
        )
        self._contexts = self._followed.load()
        self._report = ProblemReport(log, "new TLS files are not used", field="error")

    @property
    def problem(self) -> str | None:
        """The reason why changed files are not used; None if the files in use are the last ones."""
        problem = self._report.problem
        return None if problem is None else f"the changed TLS files are not used: {problem}"

    @property
    def verifies_clients(self) -> bool:
        """Whether clients need a certificate."""
        return self._files.verify_clients

    def server(self) -> ssl.SSLContext:
        """The context for an accepted connection; it offers HTTP/1.1."""
        return self._contexts[0]

    def client(self) -> ssl.SSLContext:
        """The context for a connection to a peer, whose certificate must name the dialled address."""
        return self._contexts[1]

    def accepts(self, certificate: Mapping[str, Any] | None) -> bool:
        """Every certificate that the contexts have verified, because they know the authorities and the address."""
        return certificate is not None or not self._files.verify_clients

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the files until cancelled; ``started()`` at once."""
        task_status.started()
        while True:
            await trio.sleep(_LOOK_EVERY)
            self._contexts = await self._followed.look() or self._contexts
            self._report.tell(self._followed.problem)


def _server(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load_certificate(context, files)
    if files.verify_clients:
        _load_authorities(context, files)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _client(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load_certificate(context, files)
    _load_authorities(context, files)
    return context


def _load_certificate(context: ssl.SSLContext, files: TlsFiles) -> None:
    for path in (files.cert, files.key):
        _check_readable(path)
    try:
        pem.load_pair(context, files.cert, files.key)
    except (OSError, ValueError) as exc:
        pair = f"certificate {files.cert} and key {files.key}"
        raise TlsError(f"{pair} do not make a pair in PEM form: {in_words(exc)}") from None


def _load_authorities(context: ssl.SSLContext, files: TlsFiles) -> None:
    if files.ca is None:
        context.load_default_certs()
        return
    _check_readable(files.ca)
    try:
        with pem.loaded(files.ca) as copy:
            context.load_verify_locations(copy)
    except OSError as exc:
        raise TlsError(f"{files.ca} holds no certificate in PEM form: {in_words(exc)}") from None


def _check_readable(path: Path) -> None:
    try:
        foreign.read(path, pem.SIZE)
    except OSError as exc:
        raise TlsError(f"{path} can't be read: {in_words(exc)}") from None
