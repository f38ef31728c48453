"""``KernelSocket``: TLS that the kernel encrypts (kTLS), so files leave by sendfile(2).

OpenSSL shakes hands on the socket and gives the keys to the kernel, or does not. Each direction is asked about, once,
after the handshake. A direction that the kernel has is read or written by plain system calls; any other goes through
OpenSSL and a :class:`Wire`, as it goes through memory in :class:`SecureSocket`. OpenSSL 3.0 gives the kernel no TLS 1.3
to receive, later versions do.

Only :class:`KernelSocket` has a property for the socket itself, and it can't be made for a socket that the kernel does
not encrypt. What is written to the socket of a :class:`WiredSocket` would be clear text.

OpenSSL never writes content on a :class:`KernelSocket`. What it does write are alerts, close_notify among them, which
the kernel must be told from content, and answers to requests for new keys (TLS 1.3, KeyUpdate). These answers are
dropped, because kernels before 6.14 take no second key: such a request changes the keys of the client only.

A new rule about connections that OpenSSL began on the socket belongs here.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import weakref

import trio

from spegel_consul.zerocopy.encrypted.kernel_tls import (
    KERNEL,
    OP_ENABLE_KTLS,
    SET_RECORD_TYPE,
    SOL_TLS,
    decrypts,
    encrypts,
)
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket
from spegel_consul.zerocopy.encrypted.wire import Wire

_ALERT = b"\x15"
_ALERT_SIZE = 2
_KEY_UPDATE = b"\x18\x00\x00\x01\x00"  # the answer to a request for new keys
_RECORD_TYPES = frozenset(range(20, 24))
_MAJOR_VERSION = 3  # of all records


class NotEncrypting(Exception):
    """The kernel does not encrypt what is written to the socket."""


async def accept_in_kernel(sock: trio.socket.SocketType, context: ssl.SSLContext) -> WiredSocket | None:
    """Shake hands on ``sock``, of which no byte was read, as the server; the caller limits the time.

    Return None if the process has not enough files; then no byte was read. Raises OSError.
    """
    try:
        wire = Wire()
    except OSError:
        return None
    try:
        copy = socket.fromfd(sock.fileno(), sock.family, sock.type)
    except OSError:
        wire.close()
        return None
    KERNEL.begun()
    context.options |= OP_ENABLE_KTLS  # it changes nothing for connections that OpenSSL has in memory
    tls: ssl.SSLSocket | None = None
    try:
        copy.setblocking(False)
        tls = context.wrap_socket(copy, server_side=True, do_handshake_on_connect=False)
        await _shake_hands(sock, tls)
        try:
            secure: WiredSocket = KernelSocket(sock, tls, wire)
        except NotEncrypting:
            secure = WiredSocket(sock, tls, wire)
    except BaseException:
        _close(tls or copy, wire)
        raise
    found = tls.cipher()
    KERNEL.found(isinstance(secure, KernelSocket), found[0] if found else "")
    return secure


async def _shake_hands(sock: trio.socket.SocketType, tls: ssl.SSLSocket) -> None:
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)
        else:
            return


class WiredSocket(SecureSocket):
    """The server's side of a connection that OpenSSL began as ``tls`` on a duplicate of ``sock``."""

    def __init__(self, sock: trio.socket.SocketType, tls: ssl.SSLSocket, wire: Wire) -> None:
        self._decrypted = decrypts(sock)
        self._begin(sock, tls, wire, wire)
        self._given_up = False
        wire.replace(tls.fileno())
        # an abandoned thread may still use the descriptors, so they live as long as this object then
        self._release = weakref.finalize(self, _close, tls, wire)

    def _sealed_now(self) -> bytes:
        data = super()._sealed_now()
        if data and (data[0] not in _RECORD_TYPES or data[1] != _MAJOR_VERSION):
            # OpenSSL believes that the kernel encrypts, and the kernel has said that it does not
            raise ssl.SSLError("what OpenSSL has written is not encrypted")
        return data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._decrypted:
            return await super().receive_some(max_bytes)
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return os.read(self._open(), max_bytes or SLICE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                return b""  # an alert, which is close_notify, or new keys, which the kernel can't take

    def give_up(self) -> None:
        super().give_up()
        self._given_up = True

    def close(self) -> None:
        super().close()
        if not self._given_up:
            self._release()


class KernelSocket(WiredSocket):
    """The server's side of a connection that the kernel encrypts. Raises NotEncrypting if it does not."""

    def __init__(self, sock: trio.socket.SocketType, tls: ssl.SSLSocket, wire: Wire) -> None:
        if not encrypts(sock):
            raise NotEncrypting
        super().__init__(sock, tls, wire)

    @property
    def takes_clear_text(self) -> trio.socket.SocketType:
        """The socket, which encrypts what is written to it; :meth:`flush` must have sent all before it."""
        return self._sock

    def encrypt(self, data: bytes | memoryview) -> None:
        """Keep ``data``, not more than a few slices; :meth:`flush_now` or :meth:`flush` sends it."""
        if self._broken:
            raise trio.ClosedResourceError
        if data:
            self._sealed.append(bytes(data))

    def flush_now(self, fd: int | None = None) -> bool:
        """As for other secure sockets; an alert is sent if there is space."""
        if not self._send_sealed(fd):
            return False
        if self._outgoing.pending:
            alert = _alert_of(self._outgoing.read())
            if not alert:
                return True
            with socket.fromfd(self._open() if fd is None else fd, self._sock.family, self._sock.type) as out:
                out.sendmsg([alert], [(SOL_TLS, SET_RECORD_TYPE, _ALERT)])
        return True

    def write_now(self, view: memoryview) -> int:
        """Send the bytes of ``view`` that fit and return their number. Raises BlockingIOError if it has to wait."""
        if self._broken:
            raise trio.ClosedResourceError
        if not self.flush_now():
            raise BlockingIOError
        return os.write(self._open(), view)


def _alert_of(written: bytes) -> bytes:
    """The first alert of what OpenSSL wrote; none if there is none."""
    while written.startswith(_KEY_UPDATE):
        written = written[len(_KEY_UPDATE) :]
    return written[:_ALERT_SIZE]


def _close(tls: socket.socket, wire: Wire) -> None:
    tls.close()
    wire.close()
    KERNEL.ended()
