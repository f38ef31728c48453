"""``Growth``: one look at all growing files that something waits for.

Many transfers wait at the same time for files to grow: followers of one download, or of all layers of an image. A timer
of its own for each of them costs more than the looks. So one of the waiting tasks looks at all files every 10 ms, and
wakes the tasks whose files have grown. If that task leaves, the next one goes on.

A file that has not grown for a second is looked at every 50 ms. A new rule about the time of a look belongs here; the
state of one file belongs to :mod:`spegel_consul.zerocopy.growing_file`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from spegel_consul.zerocopy.growing_file import GrowingFile

POLL = 0.01
"""Seconds between two looks at the sizes."""

_SLOW_AFTER = 1.0  # seconds
_SLOW = 5  # looks, of which such a file has one


@dataclass(eq=False, slots=True)
class _Wait:
    file: GrowingFile
    size: int
    since: float
    woken: trio.Event = field(default_factory=trio.Event)
    grown: bool = False


class Growth:
    """The waits for files of this node."""

    def __init__(self) -> None:
        self._waits: dict[_Wait, None] = {}
        self._looking = False
        self._turn = 0

    async def wait(self, file: GrowingFile, size: int, since: float, until: float) -> None:
        """Wait until ``file``, which had ``size`` bytes and last grew at ``since``, has another size, or is lost.

        Returns at the time ``until`` of Trio's clock at the latest.
        """
        mine = _Wait(file, size, since)
        self._waits[mine] = None
        try:
            with trio.move_on_at(until):
                while not mine.grown:
                    if self._looking:
                        await mine.woken.wait()
                        mine.woken = trio.Event()
                    else:
                        await self._look_for_all(mine)
        finally:
            del self._waits[mine]
            if not self._looking:
                successor = next((each for each in self._waits if not each.grown), None)
                if successor is not None:
                    successor.woken.set()

    async def _look_for_all(self, mine: _Wait) -> None:
        """Look until the file of ``mine`` has grown."""
        self._looking = True
        try:
            while not mine.grown:
                await trio.sleep(POLL)
                self._look(trio.current_time())
        finally:
            self._looking = False

    def _look(self, now: float) -> None:
        self._turn += 1
        for each in self._waits:
            if now - each.since >= _SLOW_AFTER and self._turn % _SLOW:
                continue
            try:
                each.grown = each.file.size() != each.size
            except OSError:  # the file system has lost the file
                each.grown = True
            if each.grown:
                each.woken.set()
