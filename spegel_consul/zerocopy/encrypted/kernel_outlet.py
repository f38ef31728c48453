"""The outlet to a client whose connection the kernel encrypts: files as in plain text, relayed bodies as over TLS.

A relayed body passes through this process, because its source has TLS too. A new rule about what differs from plain
text on such a connection belongs here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.encrypted.kernel_socket import KernelSocket
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import send_both, send_bytes, send_file

if TYPE_CHECKING:
    from hashlib import _Hash


class KernelOutlet:
    """A client over TLS; ``head`` is sent together with the first bytes of the body.

    ``pace``: the limit that bytes of files are counted against.
    Raises OSError, trio.TooSlowError, trio.ClosedResourceError, or Truncated if a file is too short.
    """

    def __init__(self, kernel: KernelSocket, head: bytes, pace: Pace | None = None) -> None:
        self._pace = pace
        self._kernel = kernel
        self._head = head

    async def begin(self) -> None:
        """Send the head at once, because the kernel would delay it without a limit; plain text waits for 0.2 s."""
        head, self._head = self._head, b""
        await send_bytes(await self._ready(), head)

    async def put(self, data: bytes | memoryview) -> None:
        """Send ``data``, and the head before it."""
        head, self._head = self._head, b""
        await send_both(await self._ready(), head, data)

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        """Send a part of a file by sendfile(2), and the head before it."""
        head, self._head = self._head, b""
        sock = await self._ready()
        try:
            await send_file(sock, head, fd, start, stop, count, self._pace)
        except trio.Cancelled:
            self._kernel.give_up()  # an abandoned thread may still send, and nothing may follow close_notify
            raise

    async def relay(self, position: Position, hasher: _Hash | None, *, encrypted: bool) -> Carrier:
        """Return a carrier, whether the source is encrypted or not."""
        return Carrier(self._kernel, position, hasher)

    async def _ready(self) -> trio.socket.SocketType:
        """The socket, when all that was given to the secure socket has been sent."""
        await self._kernel.flush()
        return self._kernel.takes_clear_text
