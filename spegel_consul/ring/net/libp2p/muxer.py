"""Yamux that is not trusted with memory."""

from __future__ import annotations

from typing import Any

import structlog
import trio
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from spegel_consul.peers import peer_id_to_text

log = structlog.get_logger(__name__)

RECEIVE_BUFFER = 16 << 20
"""Bytes of a peer that wait to be read, per connection."""

yamux.MAX_WINDOW_SIZE = 1 << 20  # what a stream's window may grow to, and the longest frame
_WINDOW_SLACK = 1 << 18  # it grants a little more than its target at times


class _Events(dict[int, trio.Event]):
    """Of streams that are known.

    A reader that wakes puts a new event in place of its own, also when its stream has been forgotten meanwhile
    (0.8.1, ``YamuxStream.read``), and that one would stay for as long as the connection does.
    """

    def __init__(self, streams: dict[int, YamuxStream]) -> None:
        super().__init__()
        self._streams = streams

    def __setitem__(self, number: int, event: trio.Event) -> None:
        if number in self._streams:
            super().__setitem__(number, event)


class BoundedYamux(Yamux):
    """Yamux that ends the connection of a peer which sends more than it was granted, and forgets streams that ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stream_events = _Events(self.streams)

    async def _read_data_body(self, length: int) -> bytes:
        sizes = {number: len(buffer) for number, buffer in self.stream_buffers.items()}
        overrun = any(
            size > self.streams[number].target_recv_window + _WINDOW_SLACK
            for number, size in sizes.items()
            if number in self.streams
        )
        if overrun or sum(sizes.values()) + length > RECEIVE_BUFFER:
            log.debug("ring_window_overrun", peer=peer_id_to_text(self.peer_id.to_bytes()))
            raise trio.TooSlowError  # the one error that ends the connection whatever the frame is
        try:
            return bytes(await super()._read_data_body(length))
        except Exception as exc:
            # any other error is taken for the end of the stream that the frame belongs to, while the connection, which
            # has broken in the middle of a frame, goes on for a moment
            raise trio.TooSlowError from exc

    async def discard(self, stream: YamuxStream) -> None:
        """Forget a stream that was reset, and what was not read of it."""
        async with self.streams_lock:
            number = stream.stream_id
            if self.streams.get(number) is stream:
                self.stream_buffers[number].clear()
                self._finalize_stream_locked(stream, fully_closed=True)
