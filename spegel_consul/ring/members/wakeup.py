"""A timer of one task that other tasks can bring forward."""

from __future__ import annotations

import trio


class WakeUp:
    """One task waits for it; any task may end the wait."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        """End the current wait, or the next one if no task waits."""
        self._event.set()

    async def wait(self, until: float) -> None:
        """Return at ``until`` (Trio clock), or when :meth:`wake` was called since the last time."""
        with trio.move_on_at(until):
            await self._event.wait()
        self._event = trio.Event()
