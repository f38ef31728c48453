"""A bounded send queue: putting never waits, and one task takes the bytes."""

from __future__ import annotations

import trio


class OutboxFull(Exception):
    """The queue would exceed its limit because the peer does not read."""


class Outbox:
    """A bounded queue of bytes."""

    __slots__ = ("_bytes", "_limit", "_wake", "closed")

    def __init__(self, limit: int = 8 << 20) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self._wake = trio.Event()
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self._bytes)

    def put(self, data: bytes) -> None:
        """Queue all of ``data``. Raises OutboxFull."""
        if len(self._bytes) + len(data) > self._limit:
            raise OutboxFull(f"more than {self._limit} bytes wait to be sent")
        self._bytes += data
        self._wake.set()

    def close(self) -> None:
        """Close the queue; :meth:`take` still returns the queued bytes."""
        self.closed = True
        self._wake.set()

    async def take(self) -> bytes:
        """Wait for bytes and return all that are queued; ``b""`` once the queue is closed and empty."""
        while not self._bytes and not self.closed:
            self._wake = trio.Event()
            await self._wake.wait()
        data = bytes(self._bytes)
        self._bytes.clear()
        return data
