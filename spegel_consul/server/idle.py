"""The timer that closes idle connections, as one task with a moving deadline."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import trio
from hypercorn.trio.task_group import TaskGroup


class IdleTimer:
    """Takes the place of hypercorn's idle task, which starts and cancels a task for every request."""

    def __init__(self, keep_alive: float, terminated: Callable[[], Awaitable[None]]) -> None:
        self.idle = False
        self._keep_alive = keep_alive
        self._terminated = terminated
        self._scope: trio.CancelScope | None = None
        self._touched = 0.0
        self._ended = False

    async def restart(self, group: TaskGroup, close: Callable[[], Awaitable[None]]) -> None:
        """The connection is idle from now on; ``close`` is called when it has been for too long."""
        self.idle = True
        deadline = trio.current_time() + self._keep_alive
        if self._scope is None:
            self._scope = trio.CancelScope(deadline=deadline)
            group.spawn(self._watch, self._scope, close)
        else:
            self._scope.deadline = deadline

    async def stop(self) -> None:
        """A request is being answered."""
        self.idle = False
        if self._scope is not None:
            self._scope.deadline = math.inf

    def touch(self) -> None:
        """The connection was used; moves the deadline, once a second at most."""
        now = trio.current_time()
        if self._scope is not None and now > self._touched + 1.0:
            self._touched = now
            self._scope.deadline = now + self._keep_alive

    def end(self) -> None:
        """The connection is gone."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    async def _watch(self, scope: trio.CancelScope, close: Callable[[], Awaitable[None]]) -> None:
        with scope:
            await self._terminated()
        if self.idle and not self._ended:
            with trio.CancelScope(shield=True):
                await close()
