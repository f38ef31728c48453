"""Outlets: the destinations of an answer's bytes.

The outlets are the client's socket, on the fast path, and an ASGI server that takes pieces; a socket with TLS has its
own (:mod:`spegel_consul.zerocopy.encrypted.secure_outlet`). All take a body in the same three forms: bytes, a part of
a file, and bytes that are still to come from a source. The only difference is whether the kernel can carry them.

A new kind of destination belongs here. The order of sending does not: it is in the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import trio

from spegel_consul.disk.threads import read
from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.relay import Relay
from spegel_consul.zerocopy.send import Truncated, send_both, send_file, send_head

if TYPE_CHECKING:
    from hashlib import _Hash

_READ = 1 << 18  # bytes of a file that are in memory at once


class Outlet(Protocol):
    """A destination. Each method raises an exception if the client has left or does not read."""

    async def begin(self) -> None:
        """Send the head, if it has not been sent."""
        ...

    async def put(self, data: bytes | memoryview) -> None:
        """Send ``data``."""
        ...

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        """Send the bytes ``[start, stop)`` of the file ``fd``; call ``count`` with the number sent, also on failure."""
        ...

    async def relay(self, position: Position, hasher: _Hash | None, *, encrypted: bool) -> Relay | Carrier | None:
        """Return a relay from sockets to the client, or None if none is possible now.

        ``encrypted``: whether the first source has TLS.
        """
        ...


class SocketOutlet:
    """A client's socket; ``head`` is sent together with the first bytes of the body.

    ``pace``: the limit that bytes of files are counted against.
    Raises OSError, trio.TooSlowError, trio.ClosedResourceError, or Truncated if a file is too short.
    """

    def __init__(self, sock: trio.socket.SocketType, head: bytes, pace: Pace | None = None) -> None:
        self._pace = pace
        self._sock = sock
        self._head = head

    async def begin(self) -> None:
        """Send the head, if it has not been sent. It may wait in the socket for the first bytes of the body."""
        head, self._head = self._head, b""
        if head:
            await send_head(self._sock, head)

    async def put(self, data: bytes | memoryview) -> None:
        """Send ``data``, and the head before it."""
        head, self._head = self._head, b""
        await send_both(self._sock, head, data)

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        """Send a part of a file by sendfile(2), and the head before it."""
        head, self._head = self._head, b""
        await send_file(self._sock, head, fd, start, stop, count, self._pace)

    async def relay(self, position: Position, hasher: _Hash | None, *, encrypted: bool) -> Relay | Carrier | None:
        """Return a relay by splice(2), or None if there is no thread for the hasher, or no pipe, now.

        Return a carrier for an encrypted source.
        """
        if encrypted:
            return Carrier(self._sock, position, hasher)
        return await Relay.start(self._sock, position, hasher)


class PieceOutlet:
    """An ASGI server, which takes pieces by ``send``; the head has been sent already."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send

    async def begin(self) -> None:
        """Do nothing, because the head has been sent already."""

    async def put(self, data: bytes | memoryview) -> None:
        """Send ``data``."""
        await self._send(bytes(data))

    async def file(self, fd: int, start: int, stop: int, count: Callable[[int], None]) -> None:
        """Send a part of a file, read in a thread because a disk may be slow. Raises Truncated."""
        while start < stop:
            piece = await read(fd, min(_READ, stop - start), start)
            if not piece:
                raise Truncated
            await self._send(piece)
            count(len(piece))
            start += len(piece)

    async def relay(self, position: Position, hasher: _Hash | None, *, encrypted: bool) -> None:
        """Return None, because an ASGI server gives no access to the client's socket."""
