# What was started last is stopped first, and is over before the next one is asked to stop.

"""Stages of the sidecar's life: tasks that are started in order and stopped in reverse."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import trio
from hypercorn.typing import Framework

from spegel_consul.registry.short import ShortRoad
from spegel_consul.server.door import Door
from spegel_consul.server.tls import Tls
from spegel_consul.server.worker import DRAIN_TIMEOUT, serve


class Runnable(Protocol):
    """A task that says when it has started."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


class Stages:
    """Tasks that are stopped one after the other, the last one first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def start(self, run: Runnable, *, gently: trio.Event | None = None) -> None:
        """Start ``run`` and wait until it says that it has started.

        It is stopped by cancelling it, or by setting ``gently`` if it ends by itself then.
        """
        scope, ended = trio.CancelScope(), trio.Event()

        async def stage(task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await run(task_status=task_status)
            finally:
                ended.set()

        async def stop() -> None:
            if gently is None:
                scope.cancel()
            else:
                gently.set()
            await ended.wait()

        await self._nursery.start(stage)
        self._stops.append(stop)

    async def serve(
        self,
        app: Framework,
        sock: socket.socket,
        short_road: ShortRoad | None = None,
        tls: Tls | None = None,
        door: Door | None = None,
        called: frozenset[str] = frozenset(),
        drain_timeout: float = DRAIN_TIMEOUT,
    ) -> None:
        """Serve ``app`` on ``sock``; requests in flight may end before it stops."""
        drain = trio.Event()
        run = partial(
            serve,
            app,
            sock,
            stop=drain.wait,
            short_road=short_road,
            tls=tls,
            door=door,
            called=called,
            drain_timeout=drain_timeout,
        )
        await self.start(run, gently=drain)

    async def stop(self) -> None:
        """Stop all stages."""
        while self._stops:
            await self._stops.pop()()
