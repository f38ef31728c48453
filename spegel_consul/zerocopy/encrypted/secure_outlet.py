"""The outlet to a client over TLS: the encrypted counterpart of :class:`spegel_consul.zerocopy.outlet.SocketOutlet`.

The order of sending belongs to the caller, and the ways of the bytes to the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.encrypted.send_encrypted import send_encrypted
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.position import Position

if TYPE_CHECKING:
    from hashlib import _Hash


class SecureOutlet:
    """A client over TLS; ``head`` is sent together with the first bytes of the body.

    ``pace``: the limit that bytes of files are counted against.
    Raises OSError, trio.TooSlowError, trio.ClosedResourceError, or Truncated if a file is too short.
    """

    def __init__(self, secure: SecureSocket, head: bytes, pace: Pace | None = None) -> None:
        self._pace = pace
        self._secure = secure
        self._head = head

    async def begin(self) -> None:
        """Send the head, if it has not been sent."""
        head, self._head = self._head, b""
        await self._secure.send_all(head)

    async def put(self, data: bytes | memoryview) -> None:
        """Send ``data``, and the head before it."""
        head, self._head = self._head, b""
        self._secure.encrypt(head)
        await self._secure.send_all(data)

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        """Send a part of a file, and the head before it."""
        head, self._head = self._head, b""
        await send_encrypted(self._secure, head, fd, start, stop, count, self._pace)

    async def relay(self, position: Position, hasher: _Hash | None, *, encrypted: bool) -> Carrier:
        """Return a carrier, whether the source is encrypted or not, because the kernel can't carry bytes into TLS."""
        return Carrier(self._secure, position, hasher)
