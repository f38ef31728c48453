"""``SecureSocket``: TLS on a non-blocking socket.

Encrypted bytes pass through memory (``ssl.MemoryBIO``), and one system call carries 256 KiB of them. So it carries
sixteen records, where a socket that OpenSSL reads and writes itself needs a call or two for each record, and Trio's
stream copies and checks each record several times. OpenSSL's memory never shrinks again, and an idle connection keeps
it, so it never gets more than two records at once.

Methods with ``_now`` never wait, so they may be called in a thread; the others wait on the event loop. All of them use
one TLS state, so a thread may use it only while no task does. That is so on both sides: the server reads no request
while an answer of the fast path is sent, and a client sends nothing while it reads a body.

There is no ``fileno()``, because sendfile(2) or splice(2) on the descriptor would send clear text: the kernel does not
encrypt here. ``polled`` is the descriptor, for waiting only. Where the kernel encrypts (kTLS), the connection is a
:class:`spegel_consul.zerocopy.encrypted.kernel_socket.KernelSocket`.

The end of the connection is reported alike with and without close_notify. An attacker can forge an end, so an end must
never make a body complete: bodies are framed by their length, or by chunks.

A new rule about TLS records belongs here; contexts and certificates belong to :mod:`spegel_consul.http.peer_tls`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

from spegel_consul.zerocopy.encrypted.wire import Wire
from spegel_consul.zerocopy.send import STALL

SLICE = 1 << 18
"""Bytes that are encrypted, or decrypted, before the next system call."""

_AT_ONCE = 1 << 15  # bytes that OpenSSL's memory gets at once
_EMPTY_PASSES = 8  # reads without content in a row, after which others have their turn
_MAX_SPARE = 32
_spare_buffers: list[bytearray] = []


def take_buffer() -> bytearray:
    """Return a buffer of :data:`SLICE` bytes; :func:`give_buffer` takes it back. For use in any thread."""
    try:
        return _spare_buffers.pop()
    except IndexError:
        return bytearray(SLICE)


def give_buffer(buffer: bytearray) -> None:
    """Keep a buffer for the next caller of :func:`take_buffer`."""
    if len(_spare_buffers) < _MAX_SPARE:
        _spare_buffers.append(buffer)


class SecureSocket:
    """One side of a TLS connection on ``sock``. Call :meth:`do_handshake` first, and :meth:`aclose` at the end.

    ``context`` is not changed. ``first``: bytes that were read from the socket already; ``name``: the name that the
    server's certificate must have, if the context checks names.
    Methods raise OSError (ssl.SSLError is one), trio.ClosedResourceError, and trio.TooSlowError if the other side takes
    nothing for a minute. After an error the connection can only be closed.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        name: str | None = None,
        first: bytes = b"",
    ) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(first)
        tls = context.wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=name)
        self._begin(sock, tls, incoming, outgoing)

    def _begin(
        self,
        sock: trio.socket.SocketType,
        tls: ssl.SSLObject | ssl.SSLSocket,
        incoming: ssl.MemoryBIO | Wire,
        outgoing: ssl.MemoryBIO | Wire,
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._incoming, self._outgoing = incoming, outgoing
        self._sealed: list[bytes | memoryview] = []  # encrypted bytes that the socket did not take yet
        self._sending = trio.Lock()
        self._ended = False  # the other side has closed the TCP connection, or its direction of it
        self._broken = False  # the TLS state is not to be used any more

    @property
    def polled(self) -> int:
        """The descriptor, only for waiting: what is written to it or read from it is not encrypted."""
        return self._sock.fileno()

    @property
    def unsent(self) -> int:
        """Number of encrypted bytes that were not sent yet."""
        return self._outgoing.pending + sum(map(len, self._sealed))

    def certificate(self) -> Mapping[str, Any] | None:
        """Return the certificate of the other side, which the context has verified; None if there is none."""
        return self._tls.getpeercert()

    def cipher(self) -> str:
        """Return the protocol's version and the cipher, for people."""
        found = self._tls.cipher()
        return f"{self._tls.version()} {found[0] if found else 'without cipher'}"

    async def do_handshake(self) -> None:
        """Shake hands; the caller limits the time. Raises ConnectionResetError if the other side leaves."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.flush()
                if not await self._fill():
                    self._broken = True
                    raise ConnectionResetError("the connection was closed during the handshake") from None
            except BaseException:
                self._fail()
                raise
            else:
                await self.flush()
                return

    # without waiting

    def read_now(self, view: memoryview) -> int:
        """Decrypt bytes into ``view`` and return their number; 0 at the end of the connection.

        Raises BlockingIOError if no byte is there yet.
        """
        count, passes = self._decrypt(view), 0
        while not count and not self._ended:
            passes += 1
            if passes > _EMPTY_PASSES:
                raise BlockingIOError
            buffer = take_buffer()
            try:
                # not more than fits, because the rest would have to wait in OpenSSL's memory
                here = memoryview(buffer)[: max(len(view), _AT_ONCE)]
                received = os.readv(self._open(), (here,))
                self._ended = not received
                for start in range(0, received, _AT_ONCE):
                    self._incoming.write(here[start : min(start + _AT_ONCE, received)])
                    count += self._decrypt(view[count:])
            finally:
                give_buffer(buffer)
        return count

    def _decrypt(self, view: memoryview) -> int:
        """Decrypt the records that were received, as many as fit."""
        count, read = 0, self._tls.read
        try:
            while count < len(view):
                got = int(read(len(view) - count, view[count:]))  # a number, because there is a buffer
                if not got:  # close_notify
                    self._ended = True
                    break
                count += got
        except ssl.SSLWantReadError:
            pass
        except BaseException:
            self._fail()
            raise
        return count

    def _receive_now(self) -> bool:
        """Receive encrypted bytes; return False at the end. Raises BlockingIOError."""
        data = os.read(self._open(), _AT_ONCE)
        self._incoming.write(data)
        self._ended = not data
        return bool(data)

    def encrypt(self, data: bytes | memoryview) -> None:
        """Encrypt ``data``, not more than a few slices; :meth:`flush_now` or :meth:`flush` sends it."""
        if self._broken:
            raise trio.ClosedResourceError
        view = memoryview(data)
        try:
            for start in range(0, len(view), _AT_ONCE):
                self._tls.write(view[start : start + _AT_ONCE])  # all of it, because memory takes all
                self._sealed.append(self._sealed_now())
        except BaseException:  # a client that wants to renegotiate, too
            self._fail()
            raise

    def flush_now(self, fd: int | None = None) -> bool:
        """Send the encrypted bytes that the socket takes; return whether these are all.

        ``fd``: a duplicate of the descriptor, for a thread that may be abandoned.
        """
        if self._outgoing.pending:  # of the handshake, an alert
            self._sealed.append(self._sealed_now())
        return self._send_sealed(fd)

    def _sealed_now(self) -> bytes:
        return self._outgoing.read()

    def _send_sealed(self, fd: int | None) -> bool:
        out, sealed = self._open() if fd is None else fd, self._sealed
        while sealed:
            try:
                sent = os.writev(out, sealed)
            except BlockingIOError:
                return False
            while sealed and sent >= len(sealed[0]):
                sent -= len(sealed.pop(0))
            if sent:
                sealed[0] = memoryview(sealed[0])[sent:]
        return True

    def write_now(self, view: memoryview) -> int:
        """Encrypt and send ``view``, at most a slice; return its length. Raises BlockingIOError if it has to wait.

        The last encrypted bytes may be unsent; :meth:`flush` sends them.
        """
        if not self.flush_now():
            raise BlockingIOError
        self.encrypt(view)
        self.flush_now()
        return len(view)

    # on the event loop

    async def flush(self) -> None:
        """Send all encrypted bytes."""
        if self.unsent and (self._sending.locked() or not self.flush_now()):
            async with self._sending:
                while not self.flush_now():
                    with trio.fail_after(STALL):
                        await trio.lowlevel.wait_writable(self._sock)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``."""
        view = memoryview(data)
        for start in range(0, len(view), SLICE):
            self.encrypt(view[start : start + SLICE])
            await self.flush()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte; none at the end of the connection."""
        await trio.lowlevel.checkpoint()  # because a record of one byte may always be ready
        most = max_bytes or SLICE
        while True:
            if self._broken:
                raise trio.ClosedResourceError
            try:
                data = bytes(self._tls.read(most))
            except ssl.SSLWantReadError:
                # what was read may have to be answered
                await self.flush()
                if self._ended or not await self._fill():
                    return b""
            except BaseException:
                self._fail()
                raise
            else:
                return data

    async def _fill(self) -> bool:
        waited = False
        while True:
            try:
                there = self._receive_now()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                waited = True
            else:
                if not waited:  # because records without content may always be ready
                    await trio.lowlevel.checkpoint()
                return there

    def is_quiet(self) -> bool:
        """Whether the other side has neither closed the connection nor sent bytes that were not read."""
        if self._broken or self._ended or self._incoming.pending or self._tls.pending():
            return False
        try:
            os.read(self._open(), 1)
        except BlockingIOError:
            return True
        except (OSError, trio.ClosedResourceError):
            pass
        return False

    def give_up(self) -> None:
        """Stop using the TLS state, because an abandoned thread may still use it."""
        self._broken = True

    def say_end(self) -> None:
        """Send close_notify, if the socket takes it and all bytes before it were sent."""
        if self._broken or self._sealed:
            return
        # it raises, because the other side has not sent its own close_notify yet
        with suppress(OSError, ValueError, trio.ClosedResourceError):
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self.flush_now()
        self._broken = True

    async def aclose(self) -> None:
        """Close the connection, with close_notify if that is possible at once."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close the connection as :meth:`aclose` does."""
        if self._sock.fileno() >= 0:
            self.say_end()
        self._broken = True
        self._sock.close()

    def _open(self) -> int:
        fd = self._sock.fileno()
        if fd < 0:
            raise trio.ClosedResourceError
        return fd

    def _fail(self) -> None:
        """Send the alert that says why, if any, and use the TLS state no more."""
        if not self._broken:
            self._broken = True
            with suppress(OSError, trio.ClosedResourceError):
                self.flush_now()
