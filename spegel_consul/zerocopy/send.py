"""Sending bytes and files on a Trio socket, with as few system calls and copies as the kernel allows.

A file is sent by sendfile(2), on the event loop while its pages are in memory, because the call only moves references
then. If the next pages are not in memory, the call would block the loop until the disk has read them. So all further
calls of that transfer run in a thread. The thread waits for the disk, which is told in advance to read the following
pages. The thread waits for the socket only for a moment, which is enough for a client that reads; for a client that
does not read, the loop waits.

One-byte reads that must not wait (RWF_NOWAIT) tell whether pages are in memory. One read for each 256 KiB is enough,
because read-ahead loads pages in runs of that order.

A new way to put bytes of this node on a socket belongs here; bytes of other sockets belong to
:mod:`spegel_consul.zerocopy.relay`.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Iterable

import trio

from spegel_consul.disk.threads import in_thread

STALL = 60.0
"""Seconds without progress after which sending to a client fails."""

_CHUNK = 4 << 20  # bytes of one sendfile call, well below a millisecond
_PROBE = 256 << 10
_SMALL = 1 << 20  # bytes of a file up to which probing costs more than it saves
_WRITABLE_WITHIN = 20  # milliseconds that a thread waits for the socket
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
    """Send all of ``head``; the kernel may delay it until further bytes follow (MSG_MORE)."""
    with trio.fail_after(STALL):
        sent = await sock.send(head, socket.MSG_MORE)
    await send_bytes(sock, head[sent:])


async def send_file(
    sock: trio.socket.SocketType, head: bytes, fd: int, start: int, stop: int, count: Callable[[int], object]
) -> None:
    """Send ``head`` and the bytes ``[start, stop)`` of file ``fd``; at the end, call ``count`` with the number sent.

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
                # the socket is full, and other tasks run while this one waits for it
                with trio.fail_after(STALL):
                    await trio.lowlevel.wait_writable(sock)
            elif reached < stop:
                await trio.lowlevel.checkpoint()
    finally:
        count(reached - start)


async def _cold(out: int, fd: int, start: int, count: int) -> int:
    """Run :func:`_send_cold` in a thread with duplicates of the descriptors.

    The duplicates are needed because an abandoned thread would else write to a new socket that got the same number.
    """
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
