"""Tasks of the router that nobody waits for, and that must not end each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

log = structlog.get_logger(__name__)


class Background:
    """Starts tasks in a nursery that is there only while the router runs."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None

    def spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start ``task(*args)``; nothing happens when the router does not run."""
        if self.nursery is not None:
            self.nursery.start_soon(_guarded, task, *args)


async def _guarded(task: Callable[..., Awaitable[None]], *args: object) -> None:
    try:
        await task(*args)
    except Exception as exc:  # a defect met by one peer's message must not end the ring for the others
        log.error("ring_task_failed", task=getattr(task, "__name__", "?"), error=repr(exc))
