# Pieces of a stream arrive in the order in which they were sent, its end and a reset among them.  Only the loss of a
# connection is seen at once: it overtakes what is under way.

"""One end of a stream in the simulated network."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

import trio

from spegel_consul.ring.net.host import StreamClosed, StreamReset, Take

if TYPE_CHECKING:
    from tests.sim.network import SimHost

MOST_UNREAD = 3 << 20
"""Bytes under way and waiting for a peer that does not read: a window and what is kept behind it."""

FIN_TIMEOUT = 5.0
"""Seconds that a peer has to end its side of a stream whose handler is done."""


class Mark(Enum):
    """What a stream says beside bytes."""

    END = "end"
    RESET = "reset"


Piece = bytes | Mark


class SimStream:
    """``host``'s end of a stream with ``peer``; ``forget`` is called when it has ended."""

    other: SimStream

    def __init__(self, host: SimHost, peer: bytes, forget: Callable[[], object]) -> None:
        self.host = host
        self._peer = peer
        self._forget = forget
        self._arrived: deque[bytes] = deque()
        self._wake: trio.Event | None = None
        self._unread = 0
        self._closed = self._ended = self.broken = self._was_reset = False
        self.arrives = -math.inf
        """When the last piece that was sent arrives."""

    @property
    def peer(self) -> bytes:
        return self._peer

    def send(self, data: bytes) -> None:
        if self.broken or self._closed:
            raise StreamClosed("the stream is closed")
        if self.other._unread + len(data) > MOST_UNREAD:
            self.reset()
            raise StreamClosed("the peer does not read")
        if data:
            self.other._unread += len(data)
            self.host.count()
            self.host.put(self, data)

    async def receive(self, take: Take | None = None) -> bytes:
        waited = False
        if self._arrived or self._ended:
            await trio.lowlevel.checkpoint()
        while True:
            if self.broken and not self._was_reset:
                raise StreamClosed("the stream was reset, or its connection was lost")
            if self._arrived:
                data = self._arrived.popleft()
                self._unread -= len(data)
                if not waited or take is None or not take(data):
                    return data
                continue
            if self._ended:
                return b""
            if self._was_reset:
                raise StreamReset("the peer reset the stream")
            self._wake = trio.Event()
            await self._wake.wait()
            waited = True

    def close(self) -> None:
        if not self.broken and not self._closed:
            self._closed = True
            self.host.put(self, Mark.END)
            if self._ended:
                self._forget()

    def reset(self) -> None:
        if not self.broken:
            self.break_()
            if not (self._closed and self._ended):
                self.host.put(self, Mark.RESET)

    async def finish(self) -> None:
        """Returns when both sides have ended the stream; the peer's is reset if that takes it long."""
        if self._closed and self._ended:
            return
        with trio.move_on_after(FIN_TIMEOUT), suppress(StreamClosed):
            while await self.receive():
                pass
            if self._closed:
                return
            await trio.sleep_forever()
        self.reset()

    def take_in(self, data: Piece) -> None:
        """A piece has arrived."""
        if self.broken or self.host.hold(self, data):
            return
        if data is Mark.RESET:
            self._was_reset = True
            if not self._ended:
                self._arrived.clear()
            self.break_()
            return
        if isinstance(data, Mark):
            self._ended = True
            if self._closed:
                self._forget()
        else:
            self._arrived.append(data)
        if self._wake is not None:
            self._wake.set()

    def break_(self) -> None:
        """It can't be used any more from now on."""
        if not self.broken:
            self.broken = True
            self._forget()
            if self._wake is not None:
                self._wake.set()
