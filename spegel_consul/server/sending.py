# Bytes to a socket, as few system calls and copies as the kernel allows.
#
# A file goes out by sendfile(2), on the event loop while its pages are in memory: then the call only moves
# references.  Where the next pages are not, the call would wait for the disk and everybody else for the call, so
# the rest of the transfer moves to a thread.  Whether they are is asked with one-byte reads that must not wait
# (RWF_NOWAIT), one for each 256 KiB, since read-ahead brings pages in runs of that order.

"""Sending bytes and files on a Trio socket."""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress

import trio

STALL = 60.0
"""Seconds without progress after which a client that does not read is given up."""

_CHUNK = 4 << 20  # bytes of one sendfile call, well below a millisecond
_PROBE = 256 << 10
_SMALL = 1 << 20  # files up to this size are not worth a probe
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
    sent = await sock.send(head, socket.MSG_MORE)
    await send_bytes(sock, head[sent:])


async def send_file(sock: trio.socket.SocketType, head: bytes, fd: int, start: int, stop: int) -> None:
    """Send ``head`` and then the bytes ``[start, stop)`` of file ``fd``.

    Raises Truncated, OSError, trio.TooSlowError or trio.ClosedResourceError.
    """
    await send_head(sock, head)
    out, probed = sock.fileno(), start
    if stop - start <= _SMALL:
        probed = stop
    while start < stop:
        if start >= probed:
            probed = min(stop, start + _CHUNK)
            if not _resident(fd, start, probed):
                await _in_thread(sock, fd, start, stop)
                return
        try:
            sent = os.sendfile(out, fd, start, min(stop - start, _CHUNK))
        except BlockingIOError:
            with trio.fail_after(STALL):
                await trio.lowlevel.wait_writable(sock)
            continue
        if sent == 0:
            raise Truncated
        start += sent
        if start < stop:
            await trio.lowlevel.checkpoint()


def _resident(fd: int, start: int, stop: int) -> bool:
    """Whether ``[start, stop)`` seems to be in the page cache; False if the file system can't tell."""
    try:
        for offset in (*range(start, stop, _PROBE), stop - 1):
            os.preadv(fd, _one_byte, offset, os.RWF_NOWAIT)
    except OSError:
        return False
    return True


async def _in_thread(sock: trio.socket.SocketType, fd: int, start: int, stop: int) -> None:
    """The rest of a transfer in a worker thread, which may wait for disk and socket.

    A wait that is cancelled can't just leave: the thread goes on using both descriptors, and their numbers may
    by then belong to somebody else.  So the socket is shut down, which ends the thread, and then we leave.
    """
    problem: Exception | None = None
    async with trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(_shut_down_when_cancelled, sock, done)
        problem = await trio.to_thread.run_sync(_sendfile_all, sock.fileno(), fd, start, stop, limiter=_threads)
        done.set()
    if problem is not None:  # raised out here, where no nursery wraps it
        raise problem


async def _shut_down_when_cancelled(sock: trio.socket.SocketType, done: trio.Event) -> None:
    try:
        await done.wait()
    except trio.Cancelled:
        with suppress(OSError):  # it was the peer who ended it
            sock.shutdown(socket.SHUT_RDWR)
        raise


def _sendfile_all(out: int, fd: int, start: int, stop: int) -> Exception | None:
    poll = select.poll()
    poll.register(out, select.POLLOUT)
    try:
        while start < stop:
            try:
                sent = os.sendfile(out, fd, start, min(stop - start, 2 * _CHUNK))
            except BlockingIOError:
                if not poll.poll(STALL * 1000):
                    return trio.TooSlowError()
                continue
            if sent == 0:
                return Truncated()
            start += sent
    except OSError as exc:
        return exc
    return None
