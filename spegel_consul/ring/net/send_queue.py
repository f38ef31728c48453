"""Bytes on their way out: putting never waits, one task takes."""

from __future__ import annotations

import trio


class OutboxFull(Exception):
    """The other side has not taken anything for too long."""


class Outbox:
    """A queue of bytes with a limit."""

    __slots__ = ("_bytes", "_limit", "_wake", "closed")

    def __init__(self, limit: int = 8 << 20) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self._wake = trio.Event()
        self.closed = False

    def put(self, data: bytes) -> None:
        """Queue ``data``, whole. Raises OutboxFull."""
        if len(self._bytes) + len(data) > self._limit:
            raise OutboxFull(f"more than {self._limit} bytes wait to be sent")
        self._bytes += data
        self._wake.set()

    def close(self) -> None:
        """What is queued is still taken."""
        self.closed = True
        self._wake.set()

    async def take(self) -> bytes:
        """All that is queued, as soon as there is something; ``b""`` once it is closed and empty."""
        while not self._bytes and not self.closed:
            self._wake = trio.Event()
            await self._wake.wait()
        data = bytes(self._bytes)
        self._bytes.clear()
        return data
