"""Yamux with bounded memory, and with a short way for the frames that questions and answers are made of.

The limits that py-libp2p's Yamux lacks are enforced here; the package's docstring lists its faults.

A data frame of the library passes five locks, a dozen log lines that are formatted and dropped, and is followed by a
frame that grants its few bytes again.  That is a third of the CPU of a question.  So data frames without flags between
open streams are read and written here, without waiting; all other frames, and data that has to wait for a window, go
the way of the library.  Both ways keep the same counts of the windows.

A reader that waits for one short frame after another is not woken for each: its function is called here, as long as
nothing of its stream waits to be read.

A limit on the bytes of a connection belongs here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import structlog
import trio
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from spegel_consul.peers import peer_id_to_text
from spegel_consul.ring.net.libp2p.noise_transport import Session

log = structlog.get_logger(__name__)

RECEIVE_BUFFER = 16 << 20
"""Most received bytes that wait to be read, per connection."""

yamux.MAX_WINDOW_SIZE = 1 << 20  # limits the window of a stream, and the length of a frame
_WINDOW_SLACK = 1 << 18  # it sometimes grants a little more than its target

_BODY_TIMEOUT = 60.0  # seconds
_AT_ONCE = 1 << 10  # bytes of one read of the socket after which no further frame is handled at once
_LONGEST_AT_ONCE = 8 << 10  # bytes of a frame that is handled at once; an answer to a lookup is shorter

_HEADER = struct.Struct(yamux.YAMUX_HEADER_FORMAT)
_LONGEST_SENT_AT_ONCE = yamux.MAX_MESSAGE_SIZE - yamux.HEADER_SIZE


class _Events(dict[int, trio.Event]):
    """Events of the streams that exist; ignores events of forgotten streams.

    A reader that wakes replaces its event by a new one, even if its stream was forgotten meanwhile (0.8.1,
    ``YamuxStream.read``); without this class, that event would stay until the connection ends.
    """

    def __init__(self, streams: dict[int, YamuxStream]) -> None:
        super().__init__()
        self._streams = streams

    def __setitem__(self, number: int, event: trio.Event) -> None:
        if number in self._streams:
            super().__setitem__(number, event)


class BoundedYamux(Yamux):
    """Yamux that ends the connection of a peer which exceeds its window, and forgets streams that ended."""

    def __init__(self, session: Session, *args: Any, **kwargs: Any) -> None:
        super().__init__(session, *args, **kwargs)  # type: ignore[arg-type]
        self.stream_events = _Events(self.streams)
        self._session = session
        self.takers: dict[int, Callable[[bytes], bool]] = {}
        """By stream: handles the bytes of a frame at once, or returns False."""
        session.deliver = self._deliver

    def write_at_once(self, stream: YamuxStream, data: bytes) -> bool:
        """Send ``data`` in one frame if the stream may send it now. Raises ConnectionClosedError."""
        size = len(data)
        if size > min(stream.send_window, _LONGEST_SENT_AT_ONCE) or stream.send_closed or stream.closed:
            return False
        if self.event_shutting_down.is_set():
            return False
        stream.send_window -= size
        self._session.put(_HEADER.pack(0, yamux.TYPE_DATA, 0, stream.stream_id, size) + data)
        return True

    def take(self, stream: YamuxStream, limit: int) -> bytes:
        """Up to ``limit`` bytes that have arrived, of an open stream. The window for them must be granted again."""
        buffer = self.stream_buffers.get(stream.stream_id)
        if not buffer or not self.is_open(stream):
            return b""
        data = bytes(buffer[:limit])
        del buffer[:limit]
        return data

    async def wait_for_data(self, stream: YamuxStream) -> None:
        """Returns when something has happened to an open stream, perhaps nothing new."""
        await self.stream_events[stream.stream_id].wait()
        self.stream_events[stream.stream_id] = trio.Event()

    def wake(self, stream: YamuxStream) -> None:
        """Have :meth:`wait_for_data` return."""
        if (event := self.stream_events.get(stream.stream_id)) is not None:
            event.set()

    def is_open(self, stream: YamuxStream) -> bool:
        """Whether the peer may still send on the stream; if not, the library knows how it has ended."""
        ended = stream.recv_closed or stream.closed or stream.reset_received or self.event_shutting_down.is_set()
        return not ended and stream.stream_id in self.stream_events

    def _deliver(self, received: bytearray) -> None:
        """Take the complete data frames without flags, for open streams, from the start of ``received``."""
        at = taken = 0
        while len(received) - at >= yamux.HEADER_SIZE and not self.streams_lock.locked():
            _, kind, flags, number, length = _HEADER.unpack_from(received, at)
            stream = self.streams.get(number)
            stop = at + yamux.HEADER_SIZE + length
            if kind != yamux.TYPE_DATA or flags or stream is None or stream.closed or len(received) < stop:
                break
            self._check_room(length)
            stream.recv_window = max(0, stream.recv_window - length)
            buffer, taker = self.stream_buffers[number], self.takers.get(number)
            data = received[at + yamux.HEADER_SIZE : stop]
            at = stop
            may_take = taken < _AT_ONCE and length <= _LONGEST_AT_ONCE
            if taker is not None and not buffer and may_take and self.is_open(stream):
                taken += yamux.HEADER_SIZE + length  # not frames, because a few may have thousands of messages
                if taker(bytes(data)):
                    continue
            buffer += data
            self.stream_events[number].set()
        del received[:at]

    async def _write_frame(self, data: bytes) -> None:
        self._session.put(data)

    def _check_room(self, length: int) -> None:
        """Raise TooSlowError, which ends the connection for every type of frame, if ``length`` bytes are too many."""
        total = length
        overrun = False
        for number, buffer in self.stream_buffers.items():
            size = len(buffer)
            if size:
                total += size
                overrun |= number in self.streams and size > self.streams[number].target_recv_window + _WINDOW_SLACK
        if overrun or total > RECEIVE_BUFFER:
            log.debug("ring_window_overrun", peer=peer_id_to_text(self.peer_id.to_bytes()))
            raise trio.TooSlowError

    async def _read_data_body(self, length: int) -> bytes:
        self._check_room(length)
        try:
            with trio.fail_after(_BODY_TIMEOUT):
                return await self._session.read_body(length)
        except Exception as exc:
            # because any other error ends only the stream of the frame, although the connection is broken in the
            # middle of a frame
            raise trio.TooSlowError from exc

    async def discard(self, stream: YamuxStream) -> None:
        """Forget a reset stream and its unread data."""
        async with self.streams_lock:
            number = stream.stream_id
            if self.streams.get(number) is stream:
                self.stream_buffers[number].clear()
                self._finalize_stream_locked(stream, fully_closed=True)
