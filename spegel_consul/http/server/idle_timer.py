"""The timer that closes an idle connection: one task with a moving deadline.

A new rule about the time for which a connection may be idle belongs here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import trio
from hypercorn.trio.task_group import TaskGroup

_CLOSE_WITHIN = 5.0  # seconds


class IdleTimer:
    """Replaces hypercorn's idle task, because hypercorn starts and cancels that task for every request.

    Calls ``close`` once, when the connection has been idle for ``keep_alive`` seconds, or when it is idle and
    ``terminated()`` has returned.
    """

    def __init__(
        self, keep_alive: float, terminated: Callable[[], Awaitable[None]], close: Callable[[], Awaitable[None]]
    ) -> None:
        self.idle = False
        self._busy = 0
        self._keep_alive = keep_alive
        self._terminated = terminated
        self._close = close
        self._idle_since = 0.0
        self._scope: trio.CancelScope | None = None
        self._ended = False

    async def restart(self, group: TaskGroup, _action: object) -> None:
        """Mark the connection as idle from now on, and start the task if there is none."""
        self.touch()
        self.watch(group)

    def watch(self, group: TaskGroup) -> None:
        """Start the task if there is none. A connection that ends after its first request needs none."""
        if self._scope is None:
            self._scope = trio.CancelScope()
            group.spawn(self._watch)

    async def stop(self) -> None:
        """Mark the connection as busy, because a request is being answered."""
        self.idle = False

    def touch(self) -> None:
        """Mark the connection as idle from now on, because a request has been answered."""
        self.idle = True
        self._idle_since = trio.current_time()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Do not take the connection for idle in the context, because it has a request that waits."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def hold(self) -> None:
        """Begin a :meth:`busy` that another task ends with :meth:`release`."""
        self._busy += 1

    def release(self) -> None:
        """End what :meth:`hold` has begun."""
        self._busy -= 1

    def end(self) -> None:
        """End the task, because the connection is gone."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    async def _watch(self) -> None:
        # requests do not move the deadline, so the task wakes once per keep-alive period, not once per request
        terminated = False
        while not (self._ended or terminated or (self._is_idle() and trio.current_time() >= self._deadline())):
            with trio.CancelScope(deadline=self._deadline()) as self._scope:
                await self._terminated()
                terminated = True
        if self._is_idle() and not self._ended:
            with trio.move_on_after(_CLOSE_WITHIN, shield=True):
                await self._close()

    def _is_idle(self) -> bool:
        return self.idle and not self._busy

    def _deadline(self) -> float:
        since = self._idle_since if self._is_idle() else trio.current_time()
        return since + self._keep_alive
