"""A pipe to a thread that hashes bytes, and may store them, beside their transfer.

The event loop puts bytes into the pipe by splice, tee or write. The thread reads them, and hashing releases the
interpreter, so the loop does not wait for it. The pipe takes a copy of relayed bytes
(:mod:`spegel_consul.zerocopy.relay`), or all bytes of a spool file (:mod:`spegel_consul.zerocopy.spool`).

A new rule about the hashing threads, their number or their pipes belongs here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import outcome
import trio

from spegel_consul.zerocopy.send import STALL

if TYPE_CHECKING:
    from hashlib import _Hash

PIPE_SIZE = 1 << 20
FLAGS = 1 | 2  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_READ = 1 << 18
_QUEUE = 0.5  # seconds that a transfer waits for a thread
_threads = trio.CapacityLimiter(256)
_spare_buffers: list[bytearray] = []
_MAX_SPARE = 32

_tee = ctypes.CDLL(None, use_errno=True).tee
_tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_tee.restype = ctypes.c_ssize_t


class Tap:
    """The pipe to the hashing thread. ``keep`` is called in that thread with every piece, in order."""

    def __init__(self, hasher: _Hash, keep: Callable[[memoryview], None] | None = None) -> None:
        self._hasher = hasher
        self._keep = keep
        self._outlet, self._inlet = os.pipe2(os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.fcntl(self._inlet, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.set_blocking(self._inlet, False)
        self.started = False
        self.broken = False
        """Whether the thread failed, so that the hash is not that of the bytes."""
        self.done = trio.Event()
        self.on_done: Callable[[], None] | None = None

    async def start(self) -> bool:
        """Start the thread, or return False if none is free within half a second or the limit of processes is reached.

        No task waits for the thread. It ends, and closes the outlet, when the inlet is closed.
        """
        with trio.move_on_after(_QUEUE) as queueing:
            await _threads.acquire_on_behalf_of(self)
        if queueing.cancelled_caught:
            return False
        token = trio.lowlevel.current_trio_token()

        def ended(result: outcome.Outcome[None]) -> None:
            self.broken = isinstance(result, outcome.Error)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(self._ended)

        try:
            trio.lowlevel.start_thread_soon(self._take_all, ended)
        except RuntimeError:  # the limit of processes is reached
            _threads.release_on_behalf_of(self)
            return False
        self.started = True
        return True

    def _ended(self) -> None:
        _threads.release_on_behalf_of(self)
        self.done.set()
        on_done, self.on_done, self._keep = self.on_done, None, None  # they may refer to this object
        if on_done is not None:
            on_done()

    @property
    def inlet(self) -> int:
        """The end to splice into."""
        return self._inlet

    async def tee(self, outlet: int, count: int) -> int:
        """Copy up to ``count`` bytes from the pipe ``outlet`` into this one; return their number."""
        while True:
            copied = int(_tee(outlet, self._inlet, count, FLAGS))
            if copied > 0:
                return copied
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number))
            await self.writable()

    def offer(self, data: memoryview) -> int:
        """Write the bytes that fit into the pipe without waiting; return their number.

        Bytes for a thread that failed are dropped; :attr:`broken` is true when it is done.
        """
        try:
            return os.write(self._inlet, data)
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)

    async def write(self, data: bytes) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[self.offer(view) :]
            if view:
                await self.writable()

    async def writable(self) -> None:
        """Wait until the hashing thread has made space in the pipe; it may be waiting for other threads itself."""
        with trio.fail_after(STALL):
            await trio.lowlevel.wait_writable(self._inlet)

    def end(self) -> None:
        """Close the inlet; the thread ends when it has read the remaining bytes."""
        if self._inlet >= 0:
            os.close(self._inlet)
            self._inlet = -1
            if not self.started:
                os.close(self._outlet)
                self._keep = None

    def _take_all(self) -> None:
        buffer = _spare_buffers.pop() if _spare_buffers else bytearray(_READ)
        try:
            view = memoryview(buffer)
            while count := os.readv(self._outlet, [buffer]):
                piece = view[:count]
                self._hasher.update(piece)
                if self._keep is not None:
                    self._keep(piece)
        finally:
            os.close(self._outlet)
            if len(_spare_buffers) < _MAX_SPARE:
                _spare_buffers.append(buffer)
