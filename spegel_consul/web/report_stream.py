"""A report that is sent while the work that it tells of goes on: NDJSON, a line for each change.

The work is cancelled when the client leaves, because nobody would hear of its end. Without a change an answer still has
a line each second, so that the client tells a slow node from one that hangs.

A rule about all such answers belongs here; the content of a line belongs to its report.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol

import structlog
import trio

log = structlog.get_logger(__name__)

STREAM = "application/x-ndjson"
HEARTBEAT = 1.0  # seconds between two lines at most
_LINE_PERIOD = 0.1  # seconds between two lines at least


class Report(Protocol):
    """What is told of some work. ``done``: nothing more will be told."""

    @property
    def done(self) -> bool: ...

    def documents(self) -> Iterable[dict[str, Any]]:
        """The lines to send now; at least one."""
        ...

    def failed(self, reason: str) -> None:
        """The work ended with an exception that it did not foresee; sets :attr:`done`."""
        ...

    async def changed(self) -> None:
        """Return when there is something new to tell."""
        ...


async def follow(work: Callable[[], Awaitable[object]], report: Report, nursery: trio.Nursery) -> AsyncIterator[bytes]:
    """Do ``work`` in ``nursery``, and yield the lines of ``report`` until it is done."""
    scope = trio.CancelScope()

    async def run() -> None:
        with scope:
            try:
                await work()
            except Exception as exc:  # work that fails must not end the shared nursery
                log.exception("a reported task failed")
                report.failed(f"{type(exc).__name__}: {exc}"[:300].replace("\n", " "))

    nursery.start_soon(run)
    try:
        while not report.done:
            with trio.move_on_after(HEARTBEAT):
                await report.changed()
            await trio.sleep(_LINE_PERIOD)
            if not report.done:
                for document in report.documents():
                    yield _line(document)
        # the last lines are always sent, also if the work ended while the client read the lines before
        for document in report.documents():
            yield _line(document)
    finally:
        scope.cancel()


def _line(document: dict[str, Any]) -> bytes:
    return (json.dumps(document) + "\n").encode()
