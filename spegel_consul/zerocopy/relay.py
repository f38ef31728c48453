"""A relay: bytes from one socket to another without passing through this process, hashed on the way.

                   splice                splice
       source ───────────────▶ pipe ───────────────▶ sink
                                │ tee
                                ▼
                              pipe ──read──▶ hash      (in a thread, which releases the interpreter)

splice(2) moves references to pages and tee(2) duplicates them, so the only copy is the one that the hash reads. The
last piece stays in the first pipe until the digest is verified, because a complete body can't be taken back. All bytes
that were taken from a source are sent to the sink before the next step. So a source that fails leaves nothing behind,
and another source can continue at the byte reached.

:class:`Passage` does the same through this process where the kernel can't. A new rule about moving bytes from a source
to a client belongs here; the rate of a source is watched in :mod:`spegel_consul.zerocopy.source`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.hash_tap import FLAGS, PIPE_SIZE, Tap
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import STALL, send_bytes
from spegel_consul.zerocopy.source import Source, Throughput

if TYPE_CHECKING:
    from hashlib import _Hash

_MORE = 4  # SPLICE_F_MORE
_YIELD_AFTER = 4 << 20  # bytes after which other tasks may run
_spare_pipes: list[tuple[int, int]] = []
_MAX_SPARE = 32


class Relay:
    """Carries the bytes that ``position`` lacks to ``sink``, from one or several sources.

    A thread feeds all bytes to ``hasher``, if there is one, and the last piece is withheld until :meth:`release`.
    A relay must be closed.
    Every method raises OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
    """

    @classmethod
    async def start(cls, sink: trio.socket.SocketType, position: Position, hasher: _Hash | None) -> Relay | None:
        """Return a relay, or None if there is no thread for its hasher, or no pipe, now."""
        try:
            relay = cls(sink, position, hasher)
        except OSError:  # the limit of open files is reached
            return None
        if relay._tap is not None:
            started = False
            try:
                started = await relay._tap.start()
            finally:
                if not started:
                    relay.close()
            if not started:
                return None
        return relay

    def __init__(self, sink: trio.socket.SocketType, position: Position, hasher: _Hash | None) -> None:
        self._sink = sink
        self._position = position
        self._pipe = _take_pipe()
        try:
            self._tap = Tap(hasher) if hasher is not None else None
        except OSError:
            _give_pipe(self._pipe, clean=True)
            raise
        self._inside = 0  # bytes in the pipe
        self._last = b""  # the last piece, if it came by put() and not through the pipe

    @property
    def ended(self) -> bool:
        """Whether all bytes have been taken."""
        return not self._position.left

    async def put(self, data: bytes) -> None:
        """Carry bytes that have been read from the source already."""
        if not data:
            return
        self._position.took(len(data))
        if self._tap is not None:
            await self._tap.write(data)
            if not self._position.left:
                self._last = data
                return
        await send_bytes(self._sink, data)
        self._position.gave(len(data))

    async def pull(self, source: Source, throughput: Throughput) -> None:
        """Carry all remaining bytes from ``source``.

        Raises PeerError, SourceSlow or SourceLeft; then another source can continue from the position.
        """
        inlet, origin, position, budget = self._pipe[1], source.fileno(), self._position, _YIELD_AFTER
        splice = partial(os.splice, origin, inlet, flags=FLAGS)
        while left := position.left:
            taken = await throughput.take(position, min(left, PIPE_SIZE), splice)
            if not taken:
                budget = _YIELD_AFTER
                await throughput.readable(origin, left)
                continue
            self._inside = taken
            if self._tap is None:
                await self._drain(taken)
            else:
                while self._inside:
                    copied = await self._tap.tee(self._pipe[0], self._inside)
                    if copied == self._inside and not position.left:
                        return  # the last piece waits for release()
                    await self._drain(copied)
            budget -= taken
            if budget <= 0:
                budget = _YIELD_AFTER
                await trio.lowlevel.checkpoint()

    async def hashed(self) -> bool:
        """Wait until the hasher has all bytes that were taken; return False if this node failed to hash them."""
        if self._tap is None:
            return True
        self._tap.end()
        await self._tap.done.wait()
        return not self._tap.broken

    async def release(self) -> None:
        """Send the last piece, which was withheld."""
        await self._drain(self._inside)
        await send_bytes(self._sink, self._last)
        self._position.gave(len(self._last))
        self._last = b""

    async def _drain(self, count: int) -> None:
        outlet, sink = self._pipe[0], self._sink
        while count:
            try:
                sent = os.splice(outlet, sink.fileno(), count, flags=FLAGS | (_MORE if self._position.left else 0))
            except BlockingIOError:
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(sink)
                continue
            count -= sent
            self._inside -= sent
            self._position.gave(sent)

    def close(self) -> None:
        """Return the pipe to the spare ones, or close it if it still holds bytes."""
        if self._tap is not None:
            self._tap.end()
        _give_pipe(self._pipe, clean=not self._inside)


class Passage:
    """Carries bytes like :class:`Relay`, but through this process: by ``send``, and hashed on the event loop.

    It is for TLS, for an ASGI server, and for cases in which there is no thread or pipe for a relay.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], position: Position, hasher: _Hash | None) -> None:
        self._send = send
        self._position = position
        self._hasher = hasher
        self._last = b""

    @property
    def ended(self) -> bool:
        """Whether all bytes have been taken."""
        return not self._position.left

    async def put(self, data: bytes) -> None:
        """Carry bytes that were read from the source, but withhold the last piece."""
        if not data:
            return
        self._position.took(len(data))
        if self._hasher is not None:
            self._hasher.update(data)
        if not self._position.left:
            self._last = data
        else:
            await self._send(data)
            self._position.gave(len(data))

    async def hashed(self) -> bool:
        """Return True at once, because bytes are hashed as they are taken."""
        return True

    async def release(self) -> None:
        """Send the last piece, which was withheld."""
        if self._last:
            await self._send(self._last)
            self._position.gave(len(self._last))
            self._last = b""

    def close(self) -> None:
        """Do nothing, because there is no pipe."""


def _take_pipe() -> tuple[int, int]:
    if _spare_pipes:
        return _spare_pipes.pop()
    pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(OSError):  # beyond the user's limit the default of 64 KiB stays
        fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return pipe


def _give_pipe(pipe: tuple[int, int], *, clean: bool) -> None:
    if clean and len(_spare_pipes) < _MAX_SPARE:
        _spare_pipes.append(pipe)
    else:
        os.close(pipe[0])
        os.close(pipe[1])
