"""``Wire``: what OpenSSL reads and writes in place of the socket on which it began.

OpenSSL gives keys to the kernel only during a handshake on the socket itself. It keeps the number of the descriptor and
nothing else of the socket. So after the handshake another descriptor gets that number: one end of a pair of sockets,
the other end of which belongs to this process. From then on OpenSSL sees only the bytes that it is given, and nothing
that it writes reaches the network by itself. Without that, a client could keep OpenSSL within one call for ever,
because it goes on as long as records without content come.

A new rule about the bytes between OpenSSL and this process belongs here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import termios

_MOST = 1 << 18


class Wire:
    """The part of :class:`ssl.MemoryBIO` that is used, in both directions. Call :meth:`replace` once, and close it."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)

    def replace(self, fd: int) -> None:
        """Give the number ``fd`` to OpenSSL's end."""
        os.dup2(self._far.fileno(), fd, inheritable=False)
        self._far.close()

    @property
    def pending(self) -> int:
        """Number of bytes that OpenSSL wrote."""
        count = fcntl.ioctl(self._near, termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    def write(self, data: bytes | memoryview) -> int:
        """Give ``data`` to OpenSSL, which has read all before it. Raises OSError if it is too much."""
        if self._near.send(data) < len(data):
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return len(data)

    def read(self) -> bytes:
        """Take what OpenSSL wrote; none if it wrote nothing."""
        try:
            return self._near.recv(_MOST)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        """Close both ends, except the one that OpenSSL has."""
        self._near.close()
        self._far.close()
