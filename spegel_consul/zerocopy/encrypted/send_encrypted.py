"""Sending a part of a file over TLS.

The file is read into one buffer of 256 KiB, encrypted from there and sent, slice by slice. A mapping of the file would
save a copy, but a file that becomes shorter kills the process that reads its mapping.

Up to a MiB is sent on the event loop if its pages are in memory, because a thread costs more than such a file. More is
sent in threads: encryption does not hold the interpreter, and a disk may be slow. A thread waits for the socket only
for a moment, which is enough for a client that reads; for a client that does not read, the loop waits. After some MiB
the next transfer gets the thread.

A new rule about files over TLS belongs here.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

import trio

from spegel_consul.disk.threads import NoThread, in_thread_with
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket, give_buffer, take_buffer
from spegel_consul.zerocopy.pacing import Pace
from spegel_consul.zerocopy.send import Truncated

_TURN = 0.002  # seconds that a transfer may send on the loop before other tasks run
_ON_LOOP = 1 << 20  # bytes up to which no thread is used
_IN_A_ROW = 16 << 20  # bytes after which a thread is for the next transfer
_WRITABLE_WITHIN = 20  # milliseconds that a thread waits for the socket
_threads = trio.CapacityLimiter(64)


async def send_encrypted(
    secure: SecureSocket,
    head: bytes,
    fd: int,
    start: int,
    stop: int,
    count: Callable[[int], object],
    pace: Pace | None = None,
) -> None:
    """Send ``head`` and the bytes ``[start, stop)`` of file ``fd``; at the end, call ``count`` with the number sent.

    ``pace``: the limit that the bytes of the file are counted against.
    Raises Truncated, OSError, trio.TooSlowError or trio.ClosedResourceError.
    """
    part = _Part(secure, fd, start, stop if pace is None else start)
    secure.encrypt(head)  # it goes out with the first bytes of the file
    try:
        on_loop = stop - start <= _ON_LOOP
        while part.reached < stop:
            if pace is not None and part.reached == part.stop:
                part.stop += await pace.take(stop - part.stop)
            if on_loop:
                on_loop = await part.on_loop()
            else:
                await part.in_thread()
            await secure.flush()
        await secure.flush()
    finally:
        if pace is not None:
            pace.give_back(part.stop - part.reached)
        count(max(0, part.reached - start - secure.unsent))


class _Part:
    """A part of a file; ``reached`` is the first byte that was not sent, ``stop`` the first that must wait."""

    def __init__(self, secure: SecureSocket, fd: int, start: int, stop: int) -> None:
        self._secure = secure
        self._fd = fd
        self.stop = stop
        self.reached = start
        self._given_up = False  # by the task, whose thread is to end

    async def on_loop(self) -> bool:
        """Send until the socket is full; return False if the next pages are not in memory."""
        buffer, turn_ends = take_buffer(), time.perf_counter() + _TURN
        try:
            while self.reached < self.stop:
                try:
                    piece = self._read(self._fd, buffer, os.RWF_NOWAIT)
                except OSError:  # also if the file system does not support the flag
                    return False
                if not self._send(piece, None):
                    return True
                if time.perf_counter() >= turn_ends:
                    await trio.lowlevel.checkpoint()
                    turn_ends = time.perf_counter() + _TURN
        finally:
            give_buffer(buffer)
        return True

    def _read(self, fd: int, buffer: bytearray, flags: int = 0) -> memoryview:
        view = memoryview(buffer)[: min(SLICE, self.stop - self.reached)]
        got = os.preadv(fd, (view,), self.reached, flags)
        if not got:
            raise Truncated
        return view[:got]

    def _send(self, piece: memoryview, out: int | None) -> bool:
        self._secure.encrypt(piece)
        self.reached += len(piece)
        return self._secure.flush_now(out)

    async def in_thread(self) -> None:
        """Send in a thread, which is abandoned if the caller is cancelled while the disk hangs.

        Send a slice on the event loop if there is no thread.
        """
        try:
            await in_thread_with((self._secure.polled, self._fd), self._in_a_row, _threads)
        except NoThread:
            buffer = take_buffer()
            try:
                self._send(self._read(self._fd, buffer), None)
            finally:
                give_buffer(buffer)
        except trio.Cancelled:
            self._given_up = True
            self._secure.give_up()
            raise

    def _in_a_row(self, out: int, fd: int) -> None:
        """Send while the client reads, up to the limit. Called in the thread."""
        limit = min(self.stop, self.reached + _IN_A_ROW)
        writable = select.poll()
        writable.register(out, select.POLLOUT)
        os.posix_fadvise(fd, self.reached, limit - self.reached, os.POSIX_FADV_WILLNEED)
        buffer = take_buffer()
        while self.reached < limit:
            piece = self._read(fd, buffer)
            if self._given_up:
                return
            whole = self._send(piece, out)
            while not whole:
                if not writable.poll(_WRITABLE_WITHIN) or self._given_up:
                    return
                whole = self._secure.flush_now(out)
        give_buffer(buffer)
