"""Yamux with bounded memory.

The limits that py-libp2p's Yamux lacks are enforced here; the package's docstring lists its faults.
"""

from __future__ import annotations

from typing import Any

import structlog
import trio
from libp2p.stream_muxer.yamux import yamux
from libp2p.stream_muxer.yamux.yamux import Yamux, YamuxStream

from spegel_consul.peers import peer_id_to_text

log = structlog.get_logger(__name__)

RECEIVE_BUFFER = 16 << 20
"""Most received bytes that wait to be read, per connection."""

yamux.MAX_WINDOW_SIZE = 1 << 20  # limits the window of a stream, and the length of a frame
_WINDOW_SLACK = 1 << 18  # it sometimes grants a little more than its target


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
            raise trio.TooSlowError  # the only error that ends the connection for every type of frame
        try:
            return bytes(await super()._read_data_body(length))
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
