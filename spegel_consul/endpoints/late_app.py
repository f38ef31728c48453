"""An ASGI application whose code is imported when it is asked first.

The pages and the API of a node need a framework, templates and a schema of their own: 10 MiB and a fifth of a second.
Most nodes are never asked for them. So their modules are imported in a thread when the first request arrives, which
waits for them, and the event loop goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import trio
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from spegel_consul.disk.threads import in_thread


class LateApp:
    """Passes requests to the application that ``load()()`` makes.

    ``load`` imports modules and is called in a thread; the function that it returns is called once, on the event loop.
    If one of them raises, the request fails, and the next one tries again. The application gets no lifespan events.
    """

    def __init__(self, load: Callable[[], Callable[[], ASGIFramework]]) -> None:
        self._load = load
        self._made: ASGIFramework | None = None
        self._loading = trio.Lock()

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """The ASGI 3 entry point."""
        async with self._loading:
            if self._made is None:
                self._made = (await in_thread(self._load))()
        await self._made(scope, receive, send)
