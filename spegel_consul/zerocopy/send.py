# Bytes to a socket, as few system calls and copies as the kernel allows.
#
# A file goes out by sendfile(2), on the event loop while its pages are in memory: then the call only moves
# references.  Where the next pages are not, the call would wait for the disk and everybody else for the call, so
# the calls of the rest of the transfer are made in a thread.  They wait for the disk there, which is told in advance
# what comes next, and for the socket only a moment, as a client that reads takes; for one that does not the loop waits.
# Whether the pages are there is asked with one-byte reads that must not wait (RWF_NOWAIT), one for each 256 KiB,
# since read-ahead brings pages in runs of that order.

"""Sending bytes and files on a Trio socket."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterable

import trio

from spegel_consul.disk.threads import in_thread

STALL = 60.0
"""Seconds without progress after which a client that does not read is given up."""

_CHUNK = 4 << 20  # bytes of one sendfile call, well below a millisecond
_PROBE = 256 << 10
_SMALL = 1 << 20  # files up to this size are not worth a probe
_MOMENT = 20  # milliseconds
_threads = trio.CapacityLimiter(64)
_one_byte = [bytearray(1)]


class Truncated(Exception):
    """The file ended before the promised number of bytes was sent."""


async def send_bytes(sock: trio.socket.SocketType, data: bytes) -> None:
    """Send all of ``data``. Raises OSError, trio.TooSlowError or trio.ClosedResourceError."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sock.fileno(), view) :]
        except BlockingIOError:
            with trio.fail_after(STALL):
                await trio.lowlevel.wait_writable(sock)


async def send_head(sock: trio.socket.SocketType, head: bytes) -> None:
    """Like :func:`send_bytes`, but the bytes may wait in the socket for those that follow soon."""
    with trio.fail_after(STALL):
        sent = await sock.send(head, socket.MSG_MORE)
    await send_bytes(sock, head[sent:])


async def send_file(
    sock: trio.socket.SocketType, head: bytes, fd: int, start: int, stop: int, count: Callable[[int], object]
) -> None:
    """Send ``head`` and then the bytes ``[start, stop)`` of file ``fd``; in the end ``count`` hears how many were sent.

    Raises Truncated, OSError, trio.TooSlowError or trio.ClosedResourceError.
    """
    await send_head(sock, head)
    out, reached, probed, cold = sock.fileno(), start, start, False
    if stop - start <= _SMALL:
        probed = stop
    try:
        while reached < stop:
            if reached >= probed and not cold:
                probed = min(stop, reached + _CHUNK)
                cold = not _resident(fd, reached, probed)
            most = min(stop - reached, _CHUNK)
            try:
                if cold:
                    sent = await _cold(out, fd, reached, most)
                else:
                    sent = os.sendfile(out, fd, reached, most)
            except BlockingIOError:
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(sock)
                continue
            if sent == 0:
                raise Truncated
            reached += sent
            if sent < most:
                # the socket is full: to wait for it is also the others' turn
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(sock)
            elif reached < stop:
                await trio.lowlevel.checkpoint()
    finally:
        count(reached - start)


async def _cold(out: int, fd: int, start: int, count: int) -> int:
    """:func:`_send_cold` in a thread with descriptors of its own: one that is left behind must not write to a socket
    that has got the number of one that was closed."""
    copies, lock, started, given_up = (os.dup(out), os.dup(fd)), threading.Lock(), False, False

    def send() -> int:
        nonlocal started
        with lock:
            if given_up:
                return 0
            started = True
        try:
            return _send_cold(*copies, start, count)
        finally:
            _close(copies)

    try:
        return await in_thread(send, _threads)
    finally:
        with lock:
            given_up = True
        if not started:
            _close(copies)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _send_cold(out: int, fd: int, start: int, count: int) -> int:
    """Like os.sendfile, but it sends all that a client which reads will take."""
    os.posix_fadvise(fd, start + count, count, os.POSIX_FADV_WILLNEED)
    sent, writable = 0, select.poll()
    writable.register(out, select.POLLOUT)
    while sent < count:
        try:
            moved = os.sendfile(out, fd, start + sent, count - sent)
        except BlockingIOError:
            if not writable.poll(_MOMENT):
                if sent:
                    break
                raise
        else:
            if moved == 0:
                break
            sent += moved
    return sent


def _resident(fd: int, start: int, stop: int) -> bool:
    """Whether ``[start, stop)`` seems to be in the page cache; False if the file system can't tell."""
    try:
        for offset in (*range(start, stop, _PROBE), stop - 1):
            os.preadv(fd, _one_byte, offset, os.RWF_NOWAIT)
    except OSError:
        return False
    return True
