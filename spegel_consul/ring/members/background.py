"""Background tasks of the router: nothing waits for them, and an exception in one must not end the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

log = structlog.get_logger(__name__)


class Background:
    """Starts tasks in the nursery of the router, which exists only while the router runs."""

    def __init__(self) -> None:
        self.nursery: trio.Nursery | None = None

    def spawn(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start ``task(*args)``; does nothing while the router is not running."""
        if self.nursery is not None:
            self.nursery.start_soon(_guarded, task, *args)


async def _guarded(task: Callable[..., Awaitable[None]], *args: object) -> None:
    try:
        await task(*args)
    except Exception as exc:  # a defect that one peer's message triggers must not end the router
        log.error("ring_task_failed", task=getattr(task, "__name__", "?"), error=repr(exc))
