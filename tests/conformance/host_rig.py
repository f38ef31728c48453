"""Hosts of a rig, and a server that notes what it sees: for the suites of the ``Host`` protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import pytest

from spegel_consul.ring.net.host import (
    Handler,
    Host,
    Stream,
    StreamClosed,
    StreamReset,
)

ECHO, SINK, OTHER = "/test/echo", "/test/sink", "/test/other"

WITHIN = 60.0
"""Seconds after which something hangs."""


class Rig(Protocol):
    """Makes hosts that can reach each other."""

    async def host(self, handlers: Mapping[str, Handler]) -> Host:
        """A host that runs and serves ``handlers``."""
        ...

    async def kill(self, host: Host) -> None:
        """End a host, as the end of its process does."""
        ...


class Server:
    """Handlers, and what they saw."""

    def __init__(self) -> None:
        self.opened = self.ended = 0
        self.seen: list[str] = []
        self.handlers: dict[str, Handler] = {ECHO: self._counted(self.echo), SINK: self._counted(self.sink)}

    @property
    def live(self) -> int:
        return self.opened - self.ended

    def _counted(self, handler: Handler) -> Handler:
        async def counted(stream: Stream) -> None:
            self.opened += 1
            try:
                await handler(stream)
            finally:
                self.ended += 1

        return counted

    async def echo(self, stream: Stream) -> None:
        """Send back what comes; end when the peer ends."""
        while data := await self._receive(stream):
            stream.send(data)
        stream.close()

    async def sink(self, stream: Stream) -> None:
        """Read to the end, then say how much it was and end."""
        size = 0
        while data := await self._receive(stream):
            size += len(data)
        stream.send(str(size).encode())
        stream.close()

    async def _receive(self, stream: Stream) -> bytes:
        try:
            data = await stream.receive()
        except StreamReset:
            self.seen.append("reset")
            raise
        except StreamClosed:
            self.seen.append("lost")
            raise
        if not data:
            self.seen.append("end")
        return data


async def read(stream: Stream, size: int) -> bytes:
    """``size`` bytes, in however many pieces."""
    found = b""
    while len(found) < size:
        data = await stream.receive()
        assert data, "the stream ended early"
        found += data
    return found


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def pair(rig: Rig, server: Server) -> tuple[Host, Host]:
    """One that asks and one that serves; connected."""
    here, there = await rig.host({}), await rig.host(server.handlers)
    assert await here.dial(there.address.host, there.address.port) == there.id
    return here, there
