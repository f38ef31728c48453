"""Sending bytes and files on a Trio socket, with as few system calls and copies as the kernel allows.

A file is sent by sendfile(2), on the event loop while its pages are in memory, because the call only moves references
then. If the next pages are not in memory, the call would block the loop until the disk has read them. So all further
calls of that transfer run in a thread. The thread waits for the disk, which is told in advance to read the following
pages. The thread waits for the socket only for a moment, which is enough for a client that reads; for a client that
does not read, the loop waits.

One-byte reads that must not wait (RWF_NOWAIT) tell whether pages are in memory. There is one for each 256 KiB, because
pages are loaded and evicted in runs of that order; a smaller gap, left by somebody's random reads, costs one wait. The
answer is used for a tenth of a second.

A new way to put bytes of this node on a socket belongs here; bytes of other sockets belong to
:mod:`spegel_consul.zerocopy.relay`.
"""

from __future__ import annotations

import ctypes
import math
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from spegel_consul.disk.threads import ON_LOOP, NoThread, close, in_thread_with
from spegel_consul.zerocopy.pacing import Pace

STALL = 60.0
"""Seconds without progress after which sending to a client fails."""

_CHUNK = 4 << 20  # bytes of one sendfile call, well below a millisecond
_ALONE = (
    8 << 20
)  # bytes of one call if there is no other transfer: 1 ms, 4 on a busy machine, because each call has a cost
_PROBE = 256 << 10
_FRESH = 0.1  # seconds after which pages that were in memory are tested again
_TURN = 0.002  # seconds that all transfers together may send before other tasks run
_WRITABLE_WITHIN = 20  # milliseconds that a thread waits for the socket
_threads = trio.CapacityLimiter(64)
_one_byte = [bytearray(1)]
_send_more = ctypes.CDLL(None).send
"""send(2), because Trio's send() makes a pass of the event loop, which costs more than the call."""
_send_more.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send_more.restype = ctypes.c_ssize_t
_active = 0  # transfers that send on the event loop now

AT_ONCE = _CHUNK
"""Bytes of the longest part of a file that one call sends while other connections wait."""


class Truncated(Exception):
    """The file ended before the promised number of bytes was sent."""


async def send_bytes(sock: trio.socket.SocketType, data: bytes | memoryview) -> None:
    """Send all of ``data``. Raises OSError, trio.TooSlowError or trio.ClosedResourceError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sock.fileno(), view) :]
        except BlockingIOError:
            with trio.fail_after(STALL):
                await trio.lowlevel.wait_writable(sock)


async def send_both(sock: trio.socket.SocketType, head: bytes, data: bytes | memoryview) -> None:
    """Send ``head`` and ``data`` without a copy of both, in one call if the socket has space. Raises as send_bytes."""
    sent = 0
    if head:
        with suppress(BlockingIOError):
            sent = os.writev(sock.fileno(), (head, data))
        await send_bytes(sock, head[sent:])
    await send_bytes(sock, memoryview(data)[max(0, sent - len(head)) :])


async def send_head(sock: trio.socket.SocketType, head: bytes) -> None:
    """Send all of ``head``; the kernel may delay it until further bytes follow, which must be sent."""
    sent = _send_more(sock.fileno(), head, len(head), socket.MSG_MORE)
    await send_bytes(sock, head[max(0, sent) :])  # raises the error, if there was one


async def send_file(
    sock: trio.socket.SocketType,
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
    global _active
    reached, probed, fresh_until, cold = start, start, 0.0, False
    _active += 1
    try:
        if pace is not None:
            pace.begin(sock)
        if head:
            await (send_head if start < stop else send_bytes)(sock, head)
        out, turn_ends = sock.fileno(), time.perf_counter() + _TURN / _active
        while reached < stop:
            # one scope with a moving deadline costs less than one for each wait; it is left if its deadline has passed
            # and the socket was ready all the same, because this process did not run meanwhile
            with trio.fail_after(math.inf) as stall:
                while reached < stop and not stall.cancel_called:
                    most = min(stop - reached, _ALONE if _active == 1 and not cold else _CHUNK)
                    if reached < probed and not cold:
                        most = min(most, probed - reached)
                    if pace is not None:
                        stall.deadline = math.inf
                        most = await pace.take(most)
                    now = trio.current_time()
                    if not cold and (reached >= probed or now > fresh_until):
                        probed, fresh_until = reached + most, now + _FRESH
                        cold = not _resident(fd, reached, probed)
                    try:
                        if cold:
                            stall.deadline = math.inf
                            sent = await _cold(out, fd, reached, most)
                        else:
                            sent = os.sendfile(out, fd, reached, most)
                    except BlockingIOError:
                        sent = -1
                    except BaseException:
                        if pace is not None:
                            pace.give_back(most)
                        raise
                    if sent == 0:
                        raise Truncated
                    reached += max(sent, 0)
                    if pace is not None:
                        pace.give_back(most - max(sent, 0))
                    if sent < most:
                        # the socket is full, and other tasks run while this one waits for it
                        stall.deadline = trio.current_time() + STALL
                        await trio.lowlevel.wait_writable(sock)
                    elif reached < stop and time.perf_counter() >= turn_ends:
                        stall.deadline = math.inf
                        await trio.lowlevel.checkpoint()
                    else:
                        continue
                    turn_ends = time.perf_counter() + _TURN / _active
    finally:
        _active -= 1
        count(reached - start)
        if pace is not None:
            pace.end(sock)


class FileAnswer:
    """An answer whose body is a part of a file: ``head`` and the bytes ``[start, stop)`` of ``fd``.

    :meth:`send_now` sends it without a task if the client reads and the file's pages are in memory; :meth:`send_rest`
    sends the rest. :meth:`close` closes ``fd``, and calls ``ended`` with the number of the file's bytes that were sent.
    """

    __slots__ = ("_ended", "_fd", "_head", "_reached", "_start", "_stop")

    def __init__(self, head: bytes, fd: int, start: int, stop: int, ended: Callable[[int], object]) -> None:
        self._head = head
        self._fd = fd
        self._start = self._reached = start
        self._stop = stop
        self._ended = ended

    def send_now(self, sock: trio.socket.SocketType) -> bool:
        """Send the bytes that the socket takes without waiting; return whether these are all.

        Sends nothing if the file's pages are not in memory. Raises Truncated or OSError.
        """
        if not _resident(self._fd, self._start, self._stop):
            return False
        out = sock.fileno()
        self._head = self._head[max(0, _send_more(out, self._head, len(self._head), socket.MSG_MORE)) :]
        if self._head:
            return False  # send_rest waits for the socket, or raises its error
        try:
            sent = os.sendfile(out, self._fd, self._start, self._stop - self._start)
        except BlockingIOError:
            return False
        if sent == 0:
            raise Truncated
        self._reached += sent
        return self._reached == self._stop

    async def send_rest(self, sock: trio.socket.SocketType) -> None:
        """Send the rest. Raises Truncated, OSError, trio.TooSlowError or trio.ClosedResourceError."""
        await send_file(sock, self._head, self._fd, self._reached, self._stop, self._count)

    def _count(self, sent: int) -> None:
        self._reached += sent

    def close(self) -> None:
        """Close the file; the answer has ended."""
        close(self._fd)
        self._ended(self._reached - self._start)


async def _cold(out: int, fd: int, start: int, count: int) -> int:
    """Run :func:`_send_cold` in a thread; send a little on the event loop if there is none."""
    try:
        return await in_thread_with((out, fd), lambda out, fd: _send_cold(out, fd, start, count), _threads)
    except NoThread:
        return os.sendfile(out, fd, start, min(count, ON_LOOP))


def _send_cold(out: int, fd: int, start: int, count: int) -> int:
    """Send like os.sendfile, but repeat it while the client reads."""
    os.posix_fadvise(fd, start + count, count, os.POSIX_FADV_WILLNEED)
    sent, writable = 0, select.poll()
    writable.register(out, select.POLLOUT)
    while sent < count:
        try:
            moved = os.sendfile(out, fd, start + sent, count - sent)
        except BlockingIOError:
            if not writable.poll(_WRITABLE_WITHIN):
                if sent:
                    break
                raise
        else:
            if moved == 0:
                break
            sent += moved
    return sent


def _resident(fd: int, start: int, stop: int) -> bool:
    """Whether ``[start, stop)`` seems to be in the page cache; False if the file system does not support the test."""
    try:
        for offset in (*range(start, stop, _PROBE), stop - 1):
            os.preadv(fd, _one_byte, offset, os.RWF_NOWAIT)
    except OSError:
        return False
    return True
