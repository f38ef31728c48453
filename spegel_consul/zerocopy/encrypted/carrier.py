"""``Carrier``: a relay where one end, or both, has TLS.

It keeps the rules of :class:`spegel_consul.zerocopy.relay.Relay`: all bytes that were taken from a source are sent
before another source continues, and the last piece is withheld until the digest is verified. A new rule about the order
of such a transfer belongs here, the moving of bytes to :mod:`spegel_consul.zerocopy.encrypted.pump`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.encrypted.plain_end import end_of
from spegel_consul.zerocopy.encrypted.pump import Pump, Stopped
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import STALL
from spegel_consul.zerocopy.source import Throughput

if TYPE_CHECKING:
    from hashlib import _Hash


class Carrier:
    """Carries the bytes that ``position`` lacks to ``sink``, from one or several sources, and hashes them on the way.

    The last piece is withheld until :meth:`release` if there is a ``hasher``. A carrier must be closed.
    Every method raises OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
    """

    def __init__(self, sink: trio.socket.SocketType | SecureSocket, position: Position, hasher: _Hash | None) -> None:
        self._sink = end_of(sink)
        self._position = position
        self._hasher = hasher
        self._pump = Pump(self._sink, position, hasher, keeps_last=hasher is not None)

    @property
    def ended(self) -> bool:
        """Whether all bytes have been taken."""
        return not self._position.left

    async def put(self, data: bytes) -> None:
        """Carry bytes that have been read from the source already."""
        if not data:
            return
        await self._empty()
        self._position.took(len(data))
        if self._hasher is not None:
            self._hasher.update(data)
            if not self._position.left:
                self._pump.last = data
                return
        await self._sink.send_all(data)
        self._position.gave(len(data))

    async def pull(self, source: trio.socket.SocketType | SecureSocket, throughput: Throughput) -> None:
        """Carry all remaining bytes from ``source``.

        Raises PeerError, SourceSlow or SourceLeft; then another source can continue from the position.
        """
        end, position, pump = end_of(source), self._position, self._pump
        while position.left:
            stopped = await pump.run(end, throughput.pace)
            if stopped is Stopped.SINK:
                await self._empty()
            if pump.waited and position.left:
                throughput.waited(pump.waited, position.left)
            if stopped is Stopped.SOURCE:
                await throughput.readable(end.polled, position.left)
        await self._empty()

    async def _empty(self) -> None:
        """Send what was taken and not sent."""
        pump = self._pump
        while pump.unsent:
            try:
                sent = self._sink.write_now(pump.unsent)
            except BlockingIOError:
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(self._sink.polled)
                continue
            pump.unsent = pump.unsent[sent:]
            self._position.gave(sent)
        await self._sink.flush()

    async def hashed(self) -> bool:
        """Return True at once, because bytes are hashed as they are taken."""
        return True

    async def release(self) -> None:
        """Send the last piece, which was withheld."""
        last, self._pump.last = self._pump.last, b""
        await self._sink.send_all(last)
        self._position.gave(len(last))

    def close(self) -> None:
        """Give the buffer back."""
        self._pump.close()
