# Certificates come from files that something else renews (Vault, cert-manager, a cron job), so they are looked at when
# a connection is made, once a second at most.  Files that are being replaced, or wrong, leave the old ones in use.

"""TLS contexts that follow their files."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_LOOK_EVERY = 1.0


class TlsError(Exception):
    """The files can't be used; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: this node's certificate with its chain, its key, and the authorities that peers' must come from.

    Without ``ca`` the system's authorities count. ``verify_clients``: serve only those who show a certificate.
    """

    cert: Path
    key: Path
    ca: Path | None = None
    verify_clients: bool = False


class Tls:
    """Contexts made from ``files``. Raises TlsError if they can't be used at the start."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._server = _Followed(files, _server)
        self._client = _Followed(files, _client)

    @property
    def verifies_clients(self) -> bool:
        """Whether clients need a certificate."""
        return self._files.verify_clients

    def server(self) -> ssl.SSLContext:
        """For a connection that was accepted; offers HTTP/1.1."""
        return self._server.get()

    def client(self) -> ssl.SSLContext:
        """For a connection to a peer, whose certificate must name the address that is dialled."""
        return self._client.get()


class _Followed:
    def __init__(self, files: TlsFiles, make: Callable[[TlsFiles], ssl.SSLContext]) -> None:
        self._files = files
        self._make = make
        self._seen = _signature(files)
        self._context = make(files)
        self._next_look = 0.0

    def get(self) -> ssl.SSLContext:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            seen = _signature(self._files)
            if seen != self._seen:
                self._seen = seen
                try:
                    self._context = self._make(self._files)
                except TlsError as exc:
                    log.warning("new TLS files are not used", error=str(exc))
        return self._context


def _signature(files: TlsFiles) -> tuple[tuple[int, int, int] | None, ...]:
    found: list[tuple[int, int, int] | None] = []
    for path in (files.cert, files.key, files.ca):
        try:
            status = path.stat() if path is not None else None
        except OSError:
            status = None
        found.append((status.st_ino, status.st_mtime_ns, status.st_size) if status else None)
    return tuple(found)


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
        context.load_cert_chain(files.cert, files.key)
    except (ssl.SSLError, OSError) as exc:
        pair = f"certificate {files.cert} and key {files.key}"
        raise TlsError(f"{pair} do not make a pair in PEM form: {getattr(exc, 'reason', None) or exc}") from None


def _load_authorities(context: ssl.SSLContext, files: TlsFiles) -> None:
    if files.ca is None:
        context.load_default_certs()
        return
    _check_readable(files.ca)
    try:
        context.load_verify_locations(files.ca)
    except (ssl.SSLError, OSError) as exc:
        raise TlsError(f"{files.ca} holds no certificate in PEM form: {getattr(exc, 'reason', None) or exc}") from None


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as exc:
        raise TlsError(f"{path} can't be read: {exc.strerror}") from None
