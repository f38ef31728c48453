"""Connections to the registries of peers, encrypted or not.

Nothing announces whether a peer speaks TLS, so that is tried. With ``Encryption.PREFER`` a peer whose handshake fails
is asked in plain text, and remembered for a minute; one that refuses plain text is asked over TLS again.

A new rule about the choice between TLS and plain text, or about the bytes of one connection, belongs here. Requests and
idle connections belong to :mod:`spegel_consul.http.peer_client`.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Mapping
from typing import Any

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.error_words import in_words
from spegel_consul.http.peer_tls import OTHER_SERVICE, Encryption, PeerLinks, PeerTls, fault_of
from spegel_consul.peers import PeerError, host_port
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.send import send_bytes

_PLAIN_FOR = 60.0  # seconds until a peer without TLS is asked over TLS again
_MOST_PLAIN = 4096  # peers that are remembered
_FORBIDDEN = 403


class Unreachable(PeerError):
    """No connection to the peer's address could be made."""


class _NoTls(PeerError):
    """The TLS handshake failed: the peer may speak plain HTTP."""


class RegistryConnection:
    """A connection to the registry of a peer; ``secure`` is the same socket with TLS, if there is TLS.

    ``links`` is told if the peer refuses this node's certificate.
    """

    def __init__(
        self,
        address: tuple[str, int],
        sock: trio.socket.SocketType,
        secure: SecureSocket | None,
        links: PeerLinks | None = None,
    ) -> None:
        self.address = address
        self._sock = sock
        self._secure = secure
        self._links = links
        self.encrypted = secure is not None
        self.idle_since = 0.0
        self.reused = False
        self.connected = time.perf_counter()

    def __str__(self) -> str:
        return host_port(*self.address)

    def certificate(self) -> Mapping[str, Any] | None:
        """The peer's certificate, which the context has verified."""
        return self._secure.certificate() if self._secure is not None else None

    @property
    def source(self) -> trio.socket.SocketType | SecureSocket:
        """The socket, for a transfer that takes the bytes of a body from it."""
        return self._sock if self._secure is None else self._secure

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed the connection nor sent bytes without a request."""
        if self._secure is not None:
            return self._secure.is_quiet()
        try:
            os.read(self._sock.fileno(), 1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, data: bytes) -> None:
        """Send ``data``. Raises PeerError."""
        try:
            if self._secure is None:
                await send_bytes(self._sock, data)
            else:
                await self._secure.send_all(data)
        except (OSError, trio.ClosedResourceError, trio.TooSlowError) as exc:
            raise self._failure(exc) from None

    async def receive(self, most: int) -> bytes:
        """Receive at least one byte. Raises PeerError."""
        try:
            if self._secure is not None:
                data = await self._secure.receive_some(most)
            else:
                data = await self._read(most)
        except (OSError, trio.ClosedResourceError, trio.TooSlowError) as exc:
            raise self._failure(exc) from None
        if not data:
            raise PeerError(f"{self} closed the connection")
        return data

    def _failure(self, exc: Exception) -> PeerError:
        fault = fault_of(exc)
        if fault is None or self._links is None:
            return PeerError(f"{self} reset the connection")
        self._links.refused(self.address[0], fault)
        return PeerError(f"{self} ended TLS: {fault.problem}")

    async def _read(self, most: int) -> bytes:
        fd = self._sock.fileno()
        while True:
            try:
                return os.read(fd, most)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    def close(self) -> None:
        if self._secure is None:
            self._sock.close()
        else:
            self._secure.close()


class RegistryDialler:
    """Connects to registries, over TLS as ``tls`` says; None: in plain text."""

    def __init__(self, tls: PeerTls | None) -> None:
        self._tls = tls
        self._may_be_plain = tls is not None and tls.encryption is Encryption.PREFER
        self._plain_until: BoundedDict[tuple[str, int], float] = BoundedDict(_MOST_PLAIN)

    def falls_back(self, connection: RegistryConnection, why: PeerError) -> bool:
        """Whether to ask the peer in plain text from now on, because it has ended a new encrypted connection.

        A peer refuses this node's certificate after this node's part of the handshake (TLS 1.3).
        """
        if not (self._may_be_plain and connection.encrypted) or why.broken:
            return False
        self._ask_in_plain(connection.address)
        return True

    def refuses_plain(self, connection: RegistryConnection, status: int) -> bool:
        """Whether to ask the peer over TLS again, because it answers nothing else since it was remembered as plain."""
        refused = self._may_be_plain and not connection.encrypted and status == _FORBIDDEN
        return refused and self._plain_until.pop(connection.address, 0.0) > trio.current_time()

    def _ask_in_plain(self, address: tuple[str, int]) -> None:
        self._plain_until[address] = trio.current_time() + _PLAIN_FOR

    async def connect(self, address: tuple[str, int], within: float) -> RegistryConnection:
        """A new connection, encrypted or not. Raises PeerError."""
        tls = self._tls
        if tls is None:
            return await self._dial(address, None, within)
        connection = await self._connect_by(tls, address, within)
        tls.links.note(address[0], connection.encrypted)
        return connection

    async def _connect_by(self, tls: PeerTls, address: tuple[str, int], within: float) -> RegistryConnection:
        context = tls.client()
        if self._may_be_plain and (context is None or self._plain_until.get(address, 0.0) > trio.current_time()):
            return await self._dial(address, None, within)
        if context is None:
            raise Unreachable(f"{host_port(*address)} is not asked, because this node has no certificate")
        try:
            connection = await self._dial(address, context, within)
        except _NoTls:
            if not self._may_be_plain:
                raise
            self._ask_in_plain(address)
            return await self._dial(address, None, within)
        if not tls.accepts(connection.certificate()):
            connection.close()
            tls.links.refused(address[0], OTHER_SERVICE)
            raise PeerError(f"{connection} has the certificate of another service")
        return connection

    async def _dial(
        self, address: tuple[str, int], context: ssl.SSLContext | None, within: float
    ) -> RegistryConnection:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = trio.socket.socket(family, socket.SOCK_STREAM)
        except OSError as exc:  # this machine has no IPv6, or the limit of open files is reached
            raise _unreachable(address, exc) from None
        secure = None
        try:
            with trio.fail_after(within):
                await sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if context is not None:
                    secure = SecureSocket(sock, context, name=host if context.check_hostname else None)
                    await secure.do_handshake()
        except trio.TooSlowError:
            sock.close()
            if secure is not None and self._may_be_plain:
                raise _NoTls(f"{host} port {port} did not answer in TLS", hung=True) from None
            message = f"{host} port {port} did not accept within {within:g} s"
            raise Unreachable(message, hung=True) from None
        except OSError as exc:
            sock.close()
            if secure is not None:
                if self._tls is not None and (fault := fault_of(exc)) is not None:
                    self._tls.links.refused(host, fault)
                raise _NoTls(f"{host} port {port} and this node do not agree on TLS: {in_words(exc)}") from None
            raise _unreachable(address, exc) from None
        except BaseException:
            sock.close()
            raise
        return RegistryConnection(address, sock, secure, self._tls.links if self._tls is not None else None)


def _unreachable(address: tuple[str, int], exc: OSError) -> Unreachable:
    host, port = address
    return Unreachable(f"{host} port {port} can't be reached: {in_words(exc)}")
