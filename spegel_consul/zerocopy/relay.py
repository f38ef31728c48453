# Bytes from one socket to another without passing through this process.
#
#                    splice                splice
#        source ───────────────▶ pipe ───────────────▶ sink
#                                 │ tee
#                                 ▼
#                               pipe ──read──▶ hash      (in a thread, which releases the interpreter)
#
# splice(2) moves references to pages, tee(2) duplicates them, so the only copy is the one that the hash reads.  The
# last piece stays in the first pipe until the hash is known: whoever is handed a wrong last byte can't take it back.
# Whatever was taken from a source has gone to the sink before anything else happens, so a source that dies leaves
# nothing behind and another one can go on at the byte reached.

"""Relaying bytes between sockets, and hashing them on the way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.hash_tap import FLAGS, PIPE_SIZE, Tap
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import STALL, send_bytes
from spegel_consul.zerocopy.source import Source, SourceFailed, Throughput

if TYPE_CHECKING:
    from hashlib import _Hash

_MORE = 4  # SPLICE_F_MORE
_TURN = 4 << 20  # bytes after which everybody else in the process has a turn
_spare_pipes: list[tuple[int, int]] = []
_MAX_SPARE = 32


class Relay:
    """Carries what ``position`` lacks to ``sink``, from one source after another.

    With a ``hasher`` all of it is fed to it, by a thread, and the last piece is held back until :meth:`release`.
    Close it in any case.
    Every method raises OSError, trio.TooSlowError or trio.ClosedResourceError if the sink fails.
    """

    @classmethod
    async def start(cls, sink: trio.socket.SocketType, position: Position, hasher: _Hash | None) -> Relay | None:
        """A relay, or None if there is no thread for its hasher, or no pipe, now."""
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
        self._last = b""  # or the last piece, if it did not come through the pipe

    @property
    def ended(self) -> bool:
        """Whether no more is to be taken."""
        return not self._position.left

    async def put(self, data: bytes) -> None:
        """Carry bytes that were already read from the source."""
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
        """Carry all that is left from ``source``.

        Raises SourceFailed or SourceSlow; then the position tells what another source has to give.
        """
        inlet, origin, position, turn = self._pipe[1], source.fileno(), self._position, _TURN
        while left := position.left:
            try:
                taken = os.splice(origin, inlet, min(left, PIPE_SIZE), flags=FLAGS)
            except BlockingIOError:
                turn = _TURN
                await throughput.readable(origin, left)
                continue
            except OSError as exc:
                raise SourceFailed(exc.strerror or repr(exc)) from None
            if taken == 0:
                raise SourceFailed("closed the connection")
            position.took(taken)
            self._inside = taken
            if self._tap is None:
                await self._drain(taken)
            else:
                while self._inside:
                    copied = await self._tap.tee(self._pipe[0], self._inside)
                    if copied == self._inside and not position.left:
                        return  # the last piece waits to be released
                    await self._drain(copied)
            turn -= taken
            if turn <= 0:
                turn = _TURN
                await trio.lowlevel.checkpoint()

    async def hashed(self) -> bool:
        """Return when the hasher has seen all that was taken; False if it could not, for a fault of this node."""
        if self._tap is None:
            return True
        self._tap.end()
        await self._tap.done.wait()
        return not self._tap.broken

    async def release(self) -> None:
        """Send the piece that was held back."""
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
        """Give the pipe back; one that still holds bytes is thrown away."""
        if self._tap is not None:
            self._tap.end()
        _give_pipe(self._pipe, clean=not self._inside)


class Passage:
    """The same for bytes that pass through this process: ``send`` hands them on, and they are hashed on the loop.

    They do so over TLS, to an ASGI server, and where there is no thread or pipe for a :class:`Relay`.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]], position: Position, hasher: _Hash | None) -> None:
        self._send = send
        self._position = position
        self._hasher = hasher
        self._last = b""

    @property
    def ended(self) -> bool:
        """Whether no more is to be taken."""
        return not self._position.left

    async def put(self, data: bytes) -> None:
        """Carry bytes that were read from the source, all but the last piece."""
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
        """Return at once: the hasher has seen all that was taken."""
        return True

    async def release(self) -> None:
        """Send the piece that was held back."""
        if self._last:
            await self._send(self._last)
            self._position.gave(len(self._last))
            self._last = b""

    def close(self) -> None:
        """Nothing is to be given back."""


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
