"""Sending a file that somebody else still writes, as it grows.

The bytes that are there go out like those of any file, by the outlet, in pieces of at most 2 MiB. Then the task waits
until the file has grown (:mod:`spegel_consul.zerocopy.growth`). A notification of the kernel (inotify) would come
0.35 ms after the write, but containerd writes a MiB at a time, so a poll adds little to the wait and needs no watch
that can be lost.

A piece is larger than a MiB where the file is far ahead, because :mod:`spegel_consul.zerocopy.send` tests only such
pieces for pages that are not in memory; bytes that were written a moment ago are.

The file may never become complete. Sending ends with PeerError if the file does not grow for 7 s, if its last link
was removed before it was complete, or if it becomes larger than its promised size. Never more bytes than promised are
sent.

If the writer itself gets the bytes from another growing file, the wait is longer. All files of such a chain stop at the
same moment if the first one does. Only the reader of the first file can do something about it, and its file grows
again a moment later. So the others must still be waiting then. A new rule about the end of such a file belongs here.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from spegel_consul.error_words import in_words
from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.growth import Growth
from spegel_consul.zerocopy.outlet import Outlet
from spegel_consul.zerocopy.position import Position

STALL = 7.0
"""Seconds without growth after which the file is given up; an upstream of 150 KiB/s fills a MiB in this time."""

CHAIN_STALL = 20.0
"""The same for a file whose writer gets the bytes from another growing file."""

_PIECE = 2 << 20
_CHECK = 0.25  # seconds between two looks at the client and at the file's links while nothing is sent


async def send_growing(
    outlet: Outlet,
    file: GrowingFile,
    start: int,
    position: Position,
    count: Callable[[int], object],
    check_client: Callable[[], object] = lambda: None,
    in_chain: Callable[[], bool] = lambda: False,
    growth: Growth | None = None,
) -> None:
    """Send the bytes of ``file`` that ``position`` lacks; its byte 0 is the byte ``start`` of the file.

    ``count`` is called with the number of bytes of each piece that was sent, also of a piece that failed.
    ``check_client`` raises OSError if the client has left. ``in_chain`` tells whether the file's writer gets the bytes
    from another growing file now; when that ends, the time without growth counts anew. ``growth`` is shared with other
    transfers.
    Raises PeerError, Truncated if the file became shorter, or what the outlet raises.
    """

    def gave(sent: int) -> None:
        position.gave(sent)
        count(sent)

    growth = growth or Growth()
    since = checked = trio.current_time()
    seen, chained = -1, False
    while not position.whole:
        try:
            size = file.size()
        except OSError as exc:  # the file system has lost the file
            raise PeerError(f"can't be read: {in_words(exc)}") from None
        if file.total is not None and size > file.total:
            raise PeerError(f"has more than its {file.total} bytes", broken=True)
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
        if now >= checked + _CHECK:
            checked = now
            check_client()
            before, chained = chained, in_chain()
            if before and not chained:
                since = now
            if _abandoned(file):
                raise PeerError(f"was given up by its writer after {size} bytes")
        stall = CHAIN_STALL if chained else STALL
        if now >= since + stall:
            raise PeerError(f"did not grow for {stall:g} s", hung=True)
        await growth.wait(file, size, since, min(checked + _CHECK, since + stall))


def _abandoned(file: GrowingFile) -> bool:
    try:
        return file.abandoned()
    except OSError:
        return True
