"""Small spools: bodies up to a MiB that are held in memory, and hashed on the event loop as they come.

A file, a pipe and a thread for each such body cost more than its bytes. The thread competes with the event loop for the
interpreter, so each call of the loop beside a hashing thread waits for it. Hashing a MiB takes less than a millisecond,
and a pause of the loop for that time harms nobody.

The memory of all small spools together is bounded, because a client that reads slowly occupies its spool for an
unlimited time. Beyond the bound a body has a file (:mod:`spegel_consul.zerocopy.spool`).

A new rule about bodies that have no file belongs here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.encrypted.pump import Pump, Stopped
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import Spool, SpoolSpace

if TYPE_CHECKING:
    from hashlib import _Hash

SMALL = 1 << 20
"""Bytes up to which a body has no file."""

MOST = 16 << 20
"""Bytes of all small spools together."""

_MAX_SPARE = 4
_spare_buffers: list[bytearray] = []  # kept, because the kernel clears the pages of new ones


def open_spool(space: SpoolSpace, position: Position, hasher: _Hash, until: float, client: str) -> Spool | SmallSpool:
    """Return a spool for the body: in memory if it is small and memory is left, else a file.

    Raises OSError if the limit of open files is reached.
    """
    if position.total <= SMALL and space.in_memory + position.total <= MOST:
        return SmallSpool(space, position, hasher, until)
    return Spool(space, position, hasher, until, client)


class SmallSpool:
    """Takes bytes as :class:`spegel_consul.zerocopy.spool.Spool` does, into memory: they are all in ``rest``."""

    fd = -1
    stored = 0
    full = False

    def __init__(self, space: SpoolSpace, position: Position, hasher: _Hash, until: float) -> None:
        self._space = space
        self._position = position
        self._hasher = hasher
        self._until = until
        self._size = position.total
        self._buffer = _spare_buffers.pop() if _spare_buffers else bytearray(SMALL)
        self._view = memoryview(self._buffer)[: self._size]
        self._closed = False
        space.in_memory += self._size

    @property
    def left(self) -> int:
        """Number of bytes that are still to be taken from a source."""
        return self._position.left

    @property
    def ended(self) -> bool:
        """Whether no more bytes are taken: the body is complete, or the deadline has passed."""
        return not self.left or trio.current_time() >= self._until

    @property
    def rest(self) -> memoryview:
        """The bytes that were taken."""
        return self._view[: self._position.taken]

    async def start(self) -> bool:
        """Return True, because no thread is needed."""
        return True

    def charge(self, client: str) -> None:
        """Do nothing, because no disk space is taken."""

    async def put(self, data: bytes) -> None:
        """Take bytes that have been read from the source already. Raises PeerError."""
        before = self._position.taken
        self._position.took(len(data))
        self._view[before : before + len(data)] = data
        self._hasher.update(data)

    async def pull(self, source: trio.socket.SocketType | SecureSocket, throughput: Throughput) -> None:
        """Take all remaining bytes from ``source``. Bytes taken before a failure are kept.

        Raises PeerError, SourceSlow or SourceLeft.
        """
        if isinstance(source, SecureSocket):
            await self._pull_encrypted(source, throughput)
            return
        origin, position = source.fileno(), self._position

        def read(most: int) -> int:
            return os.readv(origin, (self._view[position.taken : position.taken + most],))

        while not self.ended:
            before = position.taken
            if count := await throughput.take(position, len(self._view) - before, read):
                self._hasher.update(self._view[before : before + count])
            else:
                await throughput.readable(origin, position.left, self._until)

    async def _pull_encrypted(self, source: SecureSocket, throughput: Throughput) -> None:
        """Like :meth:`pull`, in a thread."""
        position = self._position
        pump = Pump(None, position, self._hasher, into=self._view)
        try:
            while not self.ended:
                stopped = await pump.run(source, throughput.pace)
                if pump.waited and position.left:
                    throughput.waited(pump.waited, position.left)
                if stopped is Stopped.SOURCE:
                    await throughput.readable(source.polled, position.left, self._until)
        finally:
            pump.close()

    async def settle(self) -> bool:
        """Return True, because bytes are hashed as they are taken."""
        return True

    def close(self) -> None:
        """Give the memory back; a second call does nothing. ``rest`` must not be used any more."""
        if not self._closed:
            self._closed = True
            self._space.in_memory -= self._size
            if len(_spare_buffers) < _MAX_SPARE:
                _spare_buffers.append(self._buffer)
