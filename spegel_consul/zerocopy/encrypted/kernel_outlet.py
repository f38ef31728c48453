"""The outlet to a client whose connection the kernel encrypts: files leave as in plain text.

A new rule about what differs from other encrypted connections belongs here.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from spegel_consul.zerocopy.encrypted.kernel_socket import KernelSocket
from spegel_consul.zerocopy.encrypted.secure_outlet import SecureOutlet
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.send import send_file


class KernelOutlet(SecureOutlet):
    """As :class:`SecureOutlet`, and files are sent by sendfile(2)."""

    def __init__(self, kernel: KernelSocket, head: bytes, pace: Pace | None = None) -> None:
        super().__init__(kernel, head, pace)
        self._kernel = kernel

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        head, self._head = self._head, b""
        await self._kernel.flush()
        try:
            await send_file(self._kernel.takes_clear_text, head, fd, start, stop, count, self._pace)
        except trio.Cancelled:
            self._kernel.give_up()  # an abandoned thread may still send, and nothing may follow close_notify
            raise
