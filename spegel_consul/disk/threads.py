"""Calls that wait for a disk or another device, in threads that a stop abandons.

A call into a file system with a dead disk or without its server does not return and can't be ended. Trio waits for the
thread of a cancelled call unless the call is abandoned, so one such call would keep the sidecar from stopping. Its
thread also keeps a token of its limiter. All other threads share the default limiter, so calls here have another one.
Trio's threads are daemons, so the interpreter does not wait for them when it exits.

If the limit of processes is reached, a call raises :class:`NoThread`, which is an OSError as if the disk had failed.
Bytes that a client waits for are read on the event loop then, a few at a time, because their head has been sent.

Each call that may wait for a device belongs here. An abandoned call may still end later, so it must not use an object
that its caller closes meanwhile: a call that opens a file uses :func:`open_in_thread`, and one that writes to a
descriptor of its caller :func:`in_thread_with`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

T = TypeVar("T")

MOST = 32
"""Limit of concurrent calls without a limiter of their own."""

ON_LOOP = 256 << 10
"""Bytes of a file that are read on the event loop at once if there is no thread."""

_threads = trio.CapacityLimiter(MOST)


class NoThread(OSError):
    """No thread can be started."""


async def in_thread(call: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
    """The result or exception of ``call()``, in a thread that is abandoned when the caller is cancelled.

    Raises NoThread; then ``call`` was not called.
    """
    began = False

    def run() -> T:
        nonlocal began
        began = True
        return call()

    try:
        return await trio.to_thread.run_sync(run, limiter=limiter or _threads, abandon_on_cancel=True)
    except RuntimeError as exc:
        if began:
            raise
        raise NoThread(errno.EAGAIN, "the limit of processes is reached") from exc


async def in_thread_with(fds: Iterable[int], call: Callable[..., T], limiter: trio.CapacityLimiter | None = None) -> T:
    """The result of ``call`` with duplicates of the descriptors ``fds``, as :func:`in_thread` returns it.

    The duplicates are needed because an abandoned thread would else use new files that got the same numbers.
    """
    copies: list[int] = []
    lock, started, given_up = threading.Lock(), False, False

    def run() -> T:
        nonlocal started
        with lock:
            if given_up:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            started = True
        try:
            return call(*copies)
        finally:
            _close(copies)

    try:
        for fd in fds:
            copies.append(os.dup(fd))
        return await in_thread(run, limiter)
    finally:
        with lock:
            given_up = True
        if not started:
            _close(copies)


async def read(fd: int, count: int, start: int, limiter: trio.CapacityLimiter | None = None) -> bytes:
    """At most ``count`` bytes of a file, as os.pread returns them."""
    try:
        return await in_thread(partial(os.pread, fd, count, start), limiter)
    except NoThread:
        return os.pread(fd, min(count, ON_LOOP), start)


async def open_in_thread(call: Callable[[], int], limiter: trio.CapacityLimiter | None = None) -> int:
    """The descriptor that ``call()`` returns. When the caller is cancelled, the thread closes it."""
    lock, found, given_up = threading.Lock(), [-1], False

    def opened() -> int:
        fd = call()
        with lock:
            if not given_up:
                found[0] = fd
                return fd
        os.close(fd)
        return -1

    try:
        return await in_thread(opened, limiter)
    except trio.Cancelled:
        with lock:
            given_up = True
        if found[0] >= 0:
            os.close(found[0])
        raise


def close(fd: int) -> None:
    """Close a file on the event loop; a thread does it if the file was deleted, or never had a name.

    The last close of such a file frees all its pages (18 ms for 128 MiB) and its blocks, for which a disk's journal may
    have to be waited for. Raises OSError if ``fd`` is not open.
    """
    nameless = False
    with suppress(OSError):  # a file system that has failed can't tell, and its files can be closed all the same
        nameless = not os.fstat(fd).st_nlink
    if nameless:
        with suppress(RuntimeError):  # the limit of processes is reached
            trio.lowlevel.start_thread_soon(partial(os.close, fd), lambda _: None)
            return
    os.close(fd)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
