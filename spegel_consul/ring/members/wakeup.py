"""A task's alarm clock: it wakes at a time, or earlier when somebody rings."""

from __future__ import annotations

import trio


class WakeUp:
    """To be waited for by one task."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake the task, or keep it from falling asleep the next time."""
        self._event.set()

    async def wait(self, until: float) -> None:
        """Return at ``until`` (Trio clock), or when :meth:`ring` was called since the last time."""
        with trio.move_on_at(until):
            await self._event.wait()
        self._event = trio.Event()
