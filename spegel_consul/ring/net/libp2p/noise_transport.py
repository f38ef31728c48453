"""``Wire``: the TCP stream below Noise.

Its writes are queued whole and never wait, because a cancelled write would cost Noise a nonce.
"""

from __future__ import annotations

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError

from spegel_consul.ring.net.send_queue import Outbox, OutboxFull

_MAX_READ = 1 << 17  # the longest frame of Noise has 64 KiB
_CHUNK = 1 << 16


class Wire(ReadWriteCloser):
    """The TCP stream below Noise: a write is queued whole at once, a read returns exactly ``n`` bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._out = Outbox()
        self._in = bytearray()

    async def pump(self) -> None:
        while data := await self._out.take():
            await self._stream.send_all(data)
            del data  # released before the wait for the next bytes, which may be long

    async def write(self, data: bytes) -> None:
        if self._out.closed:
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        try:
            self._out.put(data)
        except OutboxFull as exc:
            self._out.close()
            raise ConnectionClosedError(str(exc), transport="tcp") from None

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_READ:
            raise ConnectionClosedError("a frame exceeds the limit", transport="tcp")
        while len(self._in) < n:
            data = b"" if self._out.closed else await self._stream.receive_some(_CHUNK)
            if not data:
                raise ConnectionClosedError("the peer closed the connection", transport="tcp")
            self._in += data
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def close(self) -> None:
        self._out.close()
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # used only for identify's "observed address"
