"""``PlainEnd``: a socket or pipe without TLS, with the methods that :class:`SecureSocket` has for transfers.

It is for transfers through this process, one end of which has TLS, so that such a transfer need not know which. A new
method belongs here if a transfer needs it of both kinds.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.send import STALL


class PlainEnd:
    """``fileno()`` returns the non-blocking descriptor, or -1 when it is closed."""

    def __init__(self, fileno: Callable[[], int]) -> None:
        self._fileno = fileno

    @property
    def polled(self) -> int:
        """The descriptor, for waiting."""
        return self._fileno()

    def read_now(self, view: memoryview) -> int:
        """Read bytes into ``view`` and return their number; 0 at the end. Raises OSError."""
        return os.readv(self._fileno(), (view,))

    def write_now(self, view: memoryview) -> int:
        """Write the bytes that fit without waiting and return their number. Raises OSError."""
        return os.write(self._fileno(), view)

    async def send_all(self, data: bytes | memoryview) -> None:
        """Write all of ``data``. Raises OSError, trio.TooSlowError or trio.ClosedResourceError."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.write_now(view) :]
            except BlockingIOError:
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(self.polled)

    async def flush(self) -> None:
        """Do nothing, because bytes that were written are on their way."""


def end_of(sock: trio.socket.SocketType | SecureSocket) -> PlainEnd | SecureSocket:
    """Return the end that ``sock`` is."""
    return sock if isinstance(sock, SecureSocket) else PlainEnd(sock.fileno)
