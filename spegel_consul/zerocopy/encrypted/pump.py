"""``Pump``: bytes from a source to a sink through one buffer, one end of which has TLS.

One thread receives, decrypts, hashes and sends: each piece stays in the processor's cache, and none of it holds the
interpreter. A thread waits for either end only for a moment, and ends after some MiB, so that transfers rotate and a
cancelled one ends soon. It waits for no disk, so it is never abandoned. A few records need no thread; more do, because
they come one by one, and a wait of the event loop costs ten times as much as one of a thread.

The time that a thread waits for the source counts for the source's throughput, as a wait on the event loop does.

A new rule about the thread or the buffer of such a transfer belongs here.
"""

from __future__ import annotations

import select
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import trio

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.encrypted.plain_end import PlainEnd
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket, give_buffer, take_buffer
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.position import Position

if TYPE_CHECKING:
    from hashlib import _Hash

_IN_A_ROW = 4 << 20  # bytes after which other transfers, or other tasks, may run
_ON_LOOP = 64 << 10  # bytes up to which no thread is used
_WAIT = 20  # milliseconds that a thread waits for its ends, all waits together
_threads = trio.CapacityLimiter(64)


class Stopped(Enum):
    """The reason for the end of a run."""

    SOURCE = "the source has no more bytes now"
    SINK = "the sink is full"
    TURN = "others have their turn"
    DONE = "all bytes were taken"


@dataclass(slots=True)
class _Patience:
    """``left`` milliseconds of waiting; ``for_source``: the seconds of it that were spent on the source."""

    left: float
    for_source: float = 0.0

    def wait(self, fd: int, event: int) -> bool:
        """Wait for ``event`` of ``fd``; return whether it came."""
        if self.left <= 0:
            return False
        poll, began = select.poll(), time.perf_counter()
        poll.register(fd, event)
        found = bool(poll.poll(self.left))
        waited = time.perf_counter() - began
        self.left -= waited * 1000
        if event == select.POLLIN:
            self.for_source += waited
        return found


class Pump:
    """Moves the bytes that ``position`` lacks to ``sink``, and all of them to ``hasher``, if there is one.

    ``into``: the memory for the whole body, if there is no sink.
    ``counts``: whether bytes in the sink count as sent to the client. ``keeps_last``: whether the piece that completes
    the body stays in ``last``, and is not put into the sink.
    A pump must be closed.
    """

    def __init__(
        self,
        sink: PlainEnd | SecureSocket | None,
        position: Position,
        hasher: _Hash | None,
        *,
        into: memoryview | None = None,
        counts: bool = True,
        keeps_last: bool = False,
    ) -> None:
        self._sink = sink
        self._position = position
        self._hasher = hasher
        self._counts = counts
        self._keeps_last = keeps_last
        self._into = into
        self._buffer = take_buffer() if into is None else None
        self._in_thread = position.left > _ON_LOOP
        self.unsent = memoryview(b"")
        """Bytes that were taken from the source, and that the sink did not take yet."""
        self.last = b""
        self.waited = 0.0
        """Seconds that the last run waited for the source."""

    async def run(self, source: PlainEnd | SecureSocket, pace: Pace | None = None) -> Stopped:
        """Move bytes while both ends are ready. Raises PeerError if the source fails, OSError if the sink does.

        ``pace``: the limit that the bytes are counted against.
        """
        if pace is None or not self._position.left:
            return await self._move(source, _IN_A_ROW)
        before, most = self._position.taken, await pace.take(self._position.left)
        try:
            return await self._move(source, most)
        finally:
            pace.give_back(most - (self._position.taken - before))

    async def _move(self, source: PlainEnd | SecureSocket, most: int) -> Stopped:
        if self._in_thread:
            patience = _Patience(_WAIT)
            try:
                stopped = await trio.to_thread.run_sync(self._run, source, patience, most, limiter=_threads)
            except RuntimeError:  # the limit of processes is reached
                self._in_thread = False
            else:
                self.waited = patience.for_source
                return stopped
        await trio.lowlevel.checkpoint()
        self.waited = 0.0
        return self._run(source, _Patience(0), most)

    def _run(self, source: PlainEnd | SecureSocket, patience: _Patience, budget: int) -> Stopped:
        position = self._position
        view = memoryview(self._buffer or b"")
        if not self._empty(patience):
            return Stopped.SINK
        while position.left:
            if budget <= 0:
                return Stopped.TURN
            if self._into is not None:
                view = self._into[position.taken :]
            try:
                count = source.read_now(view[: min(SLICE, position.left, budget)])
            except BlockingIOError:
                if patience.wait(source.polled, select.POLLIN):
                    continue
                return Stopped.SOURCE
            except (OSError, trio.ClosedResourceError) as exc:
                raise PeerError(getattr(exc, "strerror", None) or repr(exc)) from None
            if not count:
                raise PeerError("closed the connection")
            position.took(count)
            budget -= count
            piece = view[:count]
            if self._hasher is not None:
                self._hasher.update(piece)
            if self._keeps_last and not position.left:
                self.last = bytes(piece)
                break
            if self._into is not None:
                continue
            self.unsent = piece
            if not self._empty(patience):
                return Stopped.SINK
        return Stopped.DONE

    def _empty(self, patience: _Patience) -> bool:
        """Put the bytes in the buffer into the sink; return whether it took all."""
        while self._sink is not None and self.unsent:
            try:
                sent = self._sink.write_now(self.unsent)
            except BlockingIOError:
                if patience.wait(self._sink.polled, select.POLLOUT):
                    continue
                return False
            self.unsent = self.unsent[sent:]
            if self._counts:
                self._position.gave(sent)
        return True

    def close(self) -> None:
        """Give the buffer back; ``unsent`` must not be used any more."""
        self.unsent = memoryview(b"")
        if self._buffer is not None:
            give_buffer(self._buffer)
