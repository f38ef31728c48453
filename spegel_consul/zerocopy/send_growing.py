"""Sending a file that somebody else still writes, as it grows.

The bytes that are there go out like those of any file, by the outlet, in pieces of at most 2 MiB. Then the size is
asked every 10 ms, and every 50 ms while the file does not grow, which costs one fstat(2). A notification of the kernel
(inotify) would come 0.35 ms after the write, but containerd writes a MiB at a time, so a poll adds little to the wait
and needs no watch that can be lost.

A piece is larger than a MiB where the file is far ahead, because :mod:`spegel_consul.zerocopy.send` tests only such
pieces for pages that are not in memory; bytes that were written a moment ago are.

The file may never become complete. Sending ends with SourceFailed if the file does not grow for 7 s, if its last link
was removed before it was complete, or if it becomes larger than its promised size. Never more bytes than promised are
sent. A new rule about the end of such a file belongs here.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.outlet import Outlet
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import SourceFailed

POLL = 0.01
"""Seconds between two looks at the size."""

_SLOW_POLL = 0.05  # the same, after a second without growth

STALL = 7.0
"""Seconds without growth after which the file is given up; an upstream of 150 KiB/s fills a MiB in this time."""

_PIECE = 2 << 20
_CHECK = 0.25  # seconds between two looks at the client and at the file's links while nothing is sent


async def send_growing(
    outlet: Outlet,
    file: GrowingFile,
    start: int,
    position: Position,
    count: Callable[[int], object],
    check_client: Callable[[], object] = lambda: None,
) -> None:
    """Send the bytes of ``file`` that ``position`` lacks; its byte 0 is the byte ``start`` of the file.

    ``count`` is called with the number of bytes of each piece that was sent, also of a piece that failed.
    ``check_client`` raises OSError if the client has left.
    Raises SourceFailed, Truncated if the file became shorter, or what the outlet raises.
    """

    def gave(sent: int) -> None:
        position.gave(sent)
        count(sent)

    since = checked = trio.current_time()
    seen = -1
    while not position.whole:
        try:
            size = file.size()
        except OSError as exc:  # the file system has lost the file
            raise SourceFailed(f"can't be read: {exc.strerror}") from None
        if file.total is not None and size > file.total:
            raise SourceFailed(f"has more than its {file.total} bytes", broken=True)
        there = min(size - start, position.total)
        if there > position.taken:
            position.took(there - position.taken)
        if there > position.sent:
            first = start + position.sent
            await outlet.file(file.fd, first, min(start + there, first + _PIECE), gave)
            since = checked = trio.current_time()
            continue
        now = trio.current_time()
        if size != seen:
            seen, since = size, now
        if now - since >= STALL:
            raise SourceFailed(f"did not grow for {STALL:g} s", hung=True)
        if now - checked >= _CHECK:
            checked = now
            check_client()
            if _abandoned(file):
                raise SourceFailed(f"was given up by its writer after {size} bytes")
        await trio.sleep(POLL if now - since < 1 else _SLOW_POLL)


def _abandoned(file: GrowingFile) -> bool:
    try:
        return file.abandoned()
    except OSError:
        return True
