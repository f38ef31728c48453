"""One stream of a connection.

Writes are queued, and a task of the connection sends them, so that a send never waits.  ``receive`` derives from the
marks of the muxer whether a stream ended, was reset or lost its connection, because the muxer reports an EOF for every
stream that it has forgotten.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

import structlog
import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.stream_muxer.exceptions import MuxedStreamEOF, MuxedStreamReset

from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.net.host import StreamClosed, StreamReset, Take
from spegel_consul.ring.net.send_queue import Outbox, OutboxFull

log = structlog.get_logger(__name__)

STREAM_BUFFER = 2 << 20
"""Most queued bytes per stream while the peer does not read; the longest member list is half of that."""

FIN_TIMEOUT = 5.0
"""Seconds within which a peer must end its side of a stream after the handler returned."""

_CHUNK = 1 << 16
_MAX_NAME = 1024


class Owner(Protocol):
    """The interface of the connection to its streams."""

    peer: bytes
    closed: bool

    def spawn(self, task: Callable[..., Awaitable[object]], *args: object) -> None: ...

    def reading(self) -> AbstractContextManager[trio.CancelScope]:
        """Cancel the block when the connection ends."""
        ...


class MuxedStream:
    """A Yamux stream whose queued bytes are sent by a task of the connection."""

    def __init__(self, connection: Owner, muxed: Any) -> None:
        self._connection = connection
        self._muxed = muxed
        self._out = Outbox(STREAM_BUFFER)
        self._in = bytearray()
        self._scope = trio.CancelScope()
        self._read: trio.CancelScope | None = None
        self._sent = trio.Event()
        self._pumping = False
        self._consumed = 0  # bytes whose window was not granted again
        self._take: Take | None = None  # of a receive that waits
        self._taking_failed: Exception | None = None
        self.is_reset = False
        connection.spawn(self._pump)

    @property
    def peer(self) -> bytes:
        return self._connection.peer

    def send(self, data: bytes) -> None:
        if self.is_reset or self._out.closed or self._connection.closed:
            raise StreamClosed("the stream is closed")
        try:
            if self._pumping or self._out or not self._muxed.conn.write_at_once(self._muxed, data):
                self._out.put(data)
        except (OutboxFull, ConnectionClosedError) as exc:
            self.reset()
            raise StreamClosed(str(exc)) from None

    async def receive(self, take: Take | None = None) -> bytes:
        if self._in:
            data = bytes(self._in)
            self._in.clear()
            return data
        self._check()
        muxed = self._muxed
        if take is not None:
            self._take = take
            muxed.conn.takers[muxed.stream_id] = self._take_at_once
        try:
            while not (data := muxed.conn.take(muxed, _CHUNK)) and muxed.conn.is_open(muxed):
                await muxed.conn.wait_for_data(muxed)
                if self._taking_failed is not None:
                    raise self._taking_failed
                if self.is_reset or self._connection.closed:
                    self._check()
                await self._grant(0)
        finally:
            if take is not None:
                self._take = None
                muxed.conn.takers.pop(muxed.stream_id, None)
        if data:
            await self._grant(len(data))
            return bytes(data)
        # the stream has ended, and the library knows how
        with self._connection.reading() as self._read:
            try:
                return bytes(await muxed.read(_CHUNK))
            except (MuxedStreamEOF, MuxedStreamReset):
                self._check()
                return b""
            except Exception as exc:
                raise StreamClosed(f"the stream broke: {exc!r}") from exc
        self._check()
        raise StreamClosed("the connection was lost")  # never reached, because _check raises after a cancelled read

    def _take_at_once(self, data: bytes) -> bool:
        """Have the reader's ``take`` handle ``data``; False if the reader is to wake, with or without it."""
        if self._take is None or self._taking_failed is not None:
            return False
        try:
            taken = self._take(data)
        except Exception as exc:
            self._taking_failed = exc
            taken = False
        if taken:
            self._consumed += len(data)
            if self._grants:
                self._muxed.conn.wake(self._muxed)
        return taken

    @property
    def _grants(self) -> bool:
        """Whether half of the window is used up."""
        return self._consumed >= self._muxed.target_recv_window // 2  # type: ignore[no-any-return]

    async def _grant(self, count: int) -> None:
        """Grant the window for ``count`` consumed bytes again, once half of it is used up."""
        self._consumed += count
        if self._grants:
            consumed, self._consumed = self._consumed, 0
            try:
                await self._muxed._auto_tune_and_send_window_update(bytes_read=consumed)
            except Exception as exc:
                log.debug("ring_grant_failed", peer=peer_id_to_text(self.peer), error=repr(exc))

    def _check(self) -> None:
        """Raise StreamReset if the peer reset the stream, StreamClosed if it is unreadable for another reason."""
        # The muxer reports an EOF for each stream that it has forgotten, so its marks decide.  A reset by the peer sets
        # only reset_received.  After the peer's end both may be set, and then everything was received.  A local reset
        # and the end of the connection set both, too.
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
                self._read.cancel()  # because the muxer forgets the stream without waking its reader
            self._muxed.conn.wake(self._muxed)
            self._connection.spawn(self._reset)

    async def read_exactly(self, n: int) -> bytes:
        """Exactly ``n`` bytes, for the negotiation; later bytes stay buffered for :meth:`receive`."""
        while len(self._in) < n:
            data = bytes(await self._muxed.read(_CHUNK))
            if not data:
                raise StreamClosed("the stream ended")
            self._in += data
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def finish(self) -> None:
        """Returns when both sides have ended the stream; resets it after FIN_TIMEOUT."""
        with trio.move_on_after(FIN_TIMEOUT):
            with suppress(StreamClosed):
                while await self.receive():
                    pass  # discard it, because the handler is done
                await self._sent.wait()  # Yamux gives up after 5 s if the peer grants no window
                return
        self.reset()

    async def _pump(self) -> None:
        with self._scope:
            try:
                while data := await self._out.take():
                    self._pumping = True
                    await self._muxed.write(data)
                    self._pumping = False
                    del data  # released before the wait for the next bytes, which may be long
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
    """The interface of a stream to multistream-select."""

    def __init__(self, stream: MuxedStream) -> None:
        self._stream = stream

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_NAME:
            raise StreamClosed("a protocol name exceeds the limit")
        return await self._stream.read_exactly(n)

    async def write(self, data: bytes) -> None:
        self._stream.send(data)

    async def close(self) -> None:
        self._stream.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None
