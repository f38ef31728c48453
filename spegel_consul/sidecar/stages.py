"""Stages of the sidecar's life: tasks that are started in order and stopped in reverse.

The stage that was started last is stopped first, and it has ended before the next one is asked to stop.

Only a stop ends a stage. A task that fails or returns after it has started is a defect of the sidecar: the failure is
logged and the task is started again after a pause, because the other stages, and above all the transfers in flight, do
not depend on it. So the task of a stage must be able to run again. A task that fails before it has started ends the
start-up.

A new rule about starting, restarting and stopping tasks belongs here; the choice of the tasks belongs to
:mod:`spegel_consul.sidecar.content` and :mod:`spegel_consul.sidecar.cluster`.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio
from hypercorn.typing import Framework

from spegel_consul.backoff import Backoff
from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.http.server.connection_limits import ConnectionLimits
from spegel_consul.http.server.serve import DRAIN_TIMEOUT, serve
from spegel_consul.registry.fast_path import FastPath

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 30.0
"""Seconds before a stage that failed is started again, the first time and at most."""


class Runnable(Protocol):
    """A task that says when it has started."""

    def __call__(self, *, task_status: trio.TaskStatus[None]) -> Awaitable[None]: ...


class Stages:
    """Tasks that are stopped one after the other, the last one first."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._stops: list[Callable[[], Awaitable[None]]] = []

    async def start(self, name: str, run: Runnable, *, gently: trio.Event | None = None) -> None:
        """Start ``run`` and wait until it says that it has started. Raises what it raises before that.

        It is stopped by cancelling it, or by setting ``gently`` if it ends by itself then. ``name`` is for the log.
        """
        scope, ended = trio.CancelScope(), trio.Event()

        async def stage(task_status: trio.TaskStatus[None]) -> None:
            try:
                with scope:
                    await _keep(name, run, trio.Event() if gently is None else gently, task_status)
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
        name: str,
        app: Framework,
        sock: socket.socket,
        fast_path: FastPath | None = None,
        tls: PeerTls | None = None,
        limits: ConnectionLimits | None = None,
        called: frozenset[str] = frozenset(),
        drain_timeout: float = DRAIN_TIMEOUT,
        only_own: bool = False,
    ) -> None:
        """Serve ``app`` on ``sock``; requests in flight may end before it stops. The rest is as for ``serve``."""
        drain = trio.Event()

        async def stop() -> None:
            await drain.wait()
            sock.close()  # the original too, so that the kernel refuses new clients instead of queueing them

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            # on a copy of the socket, so that clients wait in the kernel until a stage that failed is started again
            await serve(
                app,
                sock.dup(),
                stop=stop,
                fast_path=fast_path,
                tls=tls,
                limits=limits,
                called=called,
                drain_timeout=drain_timeout,
                only_own=only_own,
                task_status=task_status,
            )

        await self.start(name, run, gently=drain)

    async def stop(self) -> None:
        """Stop all stages."""
        while self._stops:
            await self._stops.pop()()


async def attempt(name: str, run: Callable[[], Awaitable[object]]) -> None:
    """Run a task that nothing depends on; a failure is logged."""
    try:
        await run()
    except* Exception as group:
        log.error("task failed", task=name, exc_info=group)


async def _keep(name: str, run: Runnable, stopping: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    """Run ``run`` until it is cancelled or ``stopping`` is set, however often it fails."""
    first = _Status(task_status)
    status: trio.TaskStatus[None] = first
    backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE, random.Random())
    while not stopping.is_set():
        began, failure = trio.current_time(), None
        try:
            await run(task_status=status)
        except BaseException as exc:
            if not first.has_started:
                raise
            failure, rest = _split(exc)
            if failure is not None and (rest is not None or stopping.is_set()):
                log.error("stage failed while it was stopped", stage=name, exc_info=failure)
            if rest is not None:
                raise rest from None
        if not first.has_started:
            raise RuntimeError(f"stage {name} ended before it had started")
        if stopping.is_set():
            return
        if trio.current_time() - began > LONGEST_PAUSE:
            backoff.reset()
        pause = backoff.next()
        log.error("stage failed and is started again", stage=name, pause=round(pause, 2), exc_info=failure)
        with trio.move_on_after(pause):
            await stopping.wait()
        status = trio.TASK_STATUS_IGNORED


def _split(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """The failure in ``error``, and the rest: a cancellation or an interrupt."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(Exception)
    return (error, None) if isinstance(error, Exception) else (None, error)


class _Status:
    """Remembers that a task has started, and passes it on."""

    def __init__(self, told: trio.TaskStatus[None]) -> None:
        self._told = told
        self.has_started = False

    def started(self, value: None = None) -> None:
        self.has_started = True
        self._told.started(value)
