"""One stream of a connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import structlog
import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.net.host import StreamClosed, StreamReset
from spegel_consul.ring.net.send_queue import Outbox, OutboxFull

log = structlog.get_logger(__name__)

STREAM_BUFFER = 2 << 20
"""Bytes that wait for a peer which does not read, per stream; the longest member list has half of that."""

FIN_TIMEOUT = 5.0
"""Seconds that a peer has to end its side of a stream whose handler is done."""

_CHUNK = 1 << 16
_MAX_NAME = 1024


class Owner(Protocol):
    """The connection, as its streams know it."""

    peer: bytes
    closed: bool

    def spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> None: ...

    def reading(self) -> AbstractContextManager[trio.CancelScope]:
        """What is within is left when the connection ends."""
        ...


class MuxedStream:
    """A Yamux stream whose writes are done by a task of the connection."""

    def __init__(self, connection: Owner, muxed: Any) -> None:
        self._connection = connection
        self._muxed = muxed
        self._out = Outbox(STREAM_BUFFER)
        self._in = bytearray()
        self._scope = trio.CancelScope()
        self._read: trio.CancelScope | None = None
        self._sent = trio.Event()
        self.is_reset = False
        connection.spawn(self._pump)

    @property
    def peer(self) -> bytes:
        return self._connection.peer

    def send(self, data: bytes) -> None:
        if self.is_reset or self._out.closed or self._connection.closed:
            raise StreamClosed("the stream is closed")
        try:
            self._out.put(data)
        except OutboxFull as exc:
            self.reset()
            raise StreamClosed(str(exc)) from None

    async def receive(self) -> bytes:
        if self._in:
            data = bytes(self._in)
            self._in.clear()
            return data
        self._check()
        with self._connection.reading() as self._read:
            try:
                return bytes(await self._muxed.read(_CHUNK))
            except (MuxedStreamEOF, MuxedStreamReset):
                self._check()
                return b""
            except Exception as exc:
                raise StreamClosed(f"the stream broke: {exc!r}") from exc
        self._check()
        raise StreamClosed("the connection was lost")  # never reached: what left the read is noted

    def _check(self) -> None:
        """Raises StreamClosed if nothing can be read, StreamReset if that is because of the peer."""
        # The muxer reports an EOF for each stream that it has forgotten, so its marks decide.  A reset of the peer sets
        # the first alone; after an end both may be set, and then the peer had said all that it had to say.  A reset
        # from here and the end of the connection set both as well.
        if self._muxed.reset_received and not self._muxed.recv_closed:
            raise StreamReset("the peer reset the stream")
        if self.is_reset:
            raise StreamClosed("the stream was reset")
        if self._connection.closed or self._muxed.conn.event_shutting_down.is_set():
            raise StreamClosed("the connection was lost")

    def close(self) -> None:
        self._out.close()

    def reset(self) -> None:
        if not self.is_reset:
            self.is_reset = True
            self._scope.cancel()
            if self._read is not None:
                self._read.cancel()  # the muxer forgets the stream and wakes nobody
            self._connection.spawn(self._reset)

    async def read_exactly(self, n: int) -> bytes:
        """``n`` bytes, while the protocol is negotiated; what came after them waits for :meth:`receive`."""
        while len(self._in) < n:
            data = bytes(await self._muxed.read(_CHUNK))
            if not data:
                raise StreamClosed("the stream ended")
            self._in += data
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def finish(self) -> None:
        """Returns when both sides have ended the stream; the peer's is reset if that takes it long."""
        with trio.move_on_after(FIN_TIMEOUT):
            with suppress(StreamClosed):
                while await self.receive():
                    pass  # nobody is left who wants it
                await self._sent.wait()  # ends by itself when the peer grants nothing
                return
        self.reset()

    async def _pump(self) -> None:
        with self._scope:
            try:
                while data := await self._out.take():
                    await self._muxed.write(data)
                await self._muxed.close()
            except Exception as exc:
                log.debug("ring_stream_broken", peer=peer_id_to_text(self.peer), error=repr(exc))
                self.reset()
        self._sent.set()

    async def _reset(self) -> None:
        try:
            await self._muxed.reset()
            await self._muxed.conn.discard(self._muxed)
        except Exception as exc:
            log.debug("ring_reset_failed", peer=peer_id_to_text(self.peer), error=repr(exc))


class Negotiation(ReadWriteCloser):
    """A stream as multistream-select reads and writes it."""

    def __init__(self, stream: MuxedStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_NAME:
            raise StreamClosed("a protocol name is impossibly long")
        return await self._stream.read_exactly(n)

    async def write(self, data: bytes) -> None:
        self._stream.send(data)

    async def close(self) -> None:
        self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None
