"""An ASGI application whose code is imported when it is asked first.

The pages and the API of a node need a framework, templates and a schema of their own: 10 MiB and a fifth of a second.
Most nodes are never asked for them. So their modules are imported in a thread when the first request arrives, which
waits for them, and the event loop goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio
from hypercorn.typing import (
    ASGIFramework,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    LifespanScope,
    LifespanStartupEvent,
    Scope,
)

from spegel_consul.disk.threads import in_thread
from spegel_consul.endpoints.plain_app import live

log = structlog.get_logger(__name__)


class LateApp:
    """Passes requests to the application that ``load()()`` makes.

    ``load`` imports modules and is called in a thread; the function that it returns is called once, on the event loop.
    If one of them raises, the request fails, and the next one tries again. The application is told of its start-up when
    it is there, if this one was told, and is cancelled at the shutdown.
    """

    def __init__(self, load: Callable[[], Callable[[], ASGIFramework]]) -> None:
        self._load = load
        self._made: ASGIFramework | None = None
        self._loading = trio.Lock()
        self._alive: trio.Nursery | None = None

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI 3 entry point."""
        if scope["type"] == "lifespan":
            async with trio.open_nursery() as self._alive:
                await live(receive, send)
                self._alive.cancel_scope.cancel()
            return
        async with self._loading:
            if self._made is None:
                made = (await in_thread(self._load))()
                if self._alive is not None:
                    await self._alive.start(self._run, made)
                self._made = made
            app = self._made
        await app(scope, receive, send)

    async def _run(self, app: ASGIFramework, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the lifespan of ``app``, in which it keeps the tasks that outlive a request, until cancelled."""
        events: list[LifespanStartupEvent] = [{"type": "lifespan.startup"}]

        async def receive() -> ASGIReceiveEvent:
            if events:
                return events.pop()
            await trio.sleep_forever()

        async def send(event: ASGISendEvent) -> None:
            if event["type"] == "lifespan.startup.failed":
                raise RuntimeError(event["message"])
            self._made = app
            task_status.started()

        scope: LifespanScope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        try:
            await app(scope, receive, send)
        except Exception:  # a task of the pages must not end the port that health and metrics share
            if self._made is None:
                raise
            log.exception("pages failed")
            self._made = None  # made anew for the next request
