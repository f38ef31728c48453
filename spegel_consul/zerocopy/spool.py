"""Spools: bytes that are hashed and stored in an unnamed file until they are verified.

       source ──splice──▶ pipe ──read──▶ hash and file      (in a thread)

The file has no name and is deleted with its descriptor. It is in the data directory, on a disk. There the page cache
has its pages, and gives them back when memory is short; in /dev/shm the pages would count against the sidecar's cgroup
until they are sent. Most files are so short-lived that they are never written to the disk. Only the thread writes,
because a busy disk blocks the writer.

A spool may end early, because of its deadline or a full disk. The bytes taken so far are then in the file, or, if they
were still in the pipe, in memory. The caller sends both and continues without a spool.

A file is never rewritten, because sendfile passes references to its pages to the socket, which may still read them. Any
number of clients may be sent from one file, each from an offset of its own.

The disk space is shared fairly. This node's own runtime may have all of it. Other machines together may have half of
it, and each of them a quarter, because a client that reads slowly occupies its spool for an unlimited time.

A new rule about the disk space or the life of spool files belongs here. The decision which bodies are spooled belongs
to :mod:`spegel_consul.registry.mirror.mirror`.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spegel_consul.disk.threads import close
from spegel_consul.zerocopy.encrypted.plain_end import PlainEnd
from spegel_consul.zerocopy.encrypted.pump import Pump, Stopped
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.hash_tap import FLAGS, PIPE_SIZE, Tap
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import Throughput

if TYPE_CHECKING:
    from hashlib import _Hash

_YIELD_AFTER = 4 << 20  # bytes after which other tasks may run
_IN_MEMORY = 64 << 20  # bytes of all spools together if there is no directory
_GRACE = 5.0  # seconds that the disk may take after the deadline
_SHARE = 2  # spools may take 1/2 of the free space of a file system,
_REMOTE = 2  # spools for other machines together 1/2 of that,
_EACH = 4  # and spools for one address 1/4 of that

OWN = ""
"""The address of a client on this machine."""


class SpoolSpace:
    """The space for spools: in ``directory``, else in the directory of temporary files, else in memory."""

    def __init__(self, directory: Path | None) -> None:
        self._directories = [str(directory)] if directory is not None else []
        with suppress(OSError):
            self._directories.append(tempfile.gettempdir())
        self.in_memory = 0
        """Size in bytes of all bodies together that are held in memory."""
        self.promised = 0
        """Final size in bytes of all open spools together."""
        self.by_client: Counter[str] = Counter()
        """The same by the address of the client of a spool; :data:`OWN` is this machine."""

    def promise(self, client: str, total: int) -> None:
        """Add a spool of ``total`` bytes for ``client``; a negative number removes one."""
        self.promised += total
        self.by_client[client] += total
        if not self.by_client[client]:
            del self.by_client[client]

    def _has(self, client: str, size: int) -> bool:
        """Whether the promises to ``client`` are within its share of ``size`` bytes."""
        if self.promised > size:
            return False
        if client == OWN:
            return True
        remote = self.promised - self.by_client[OWN]
        return remote <= size // _REMOTE and self.by_client[client] <= size // _EACH

    def open(self, client: str) -> int:
        """Open a file for bytes that are promised already; call this in a thread.

        Raises OSError if the space is not enough.
        """
        for directory in self._directories:
            with suppress(OSError):
                found = os.statvfs(directory)
                if self._has(client, found.f_bavail * found.f_frsize // _SHARE):
                    return _unnamed(directory)
        if self._directories or not self._has(client, _IN_MEMORY):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.memfd_create("spool")

    def spare(self) -> int:
        """Return the number of bytes that may still be promised; call this in a thread."""
        free = [] if self._directories else [_IN_MEMORY]
        for directory in self._directories:
            with suppress(OSError):
                found = os.statvfs(directory)
                free.append(found.f_bavail * found.f_frsize // _SHARE)
        return max(free, default=0) - self.promised


def _unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # the file system does not support O_TMPFILE
        fd, path = tempfile.mkstemp(prefix=".spool-", dir=directory)
        Path(path).unlink()
        return fd


class Spool:
    """Takes the bytes that ``position`` lacks from one or several sources, until it is complete or has ended early.

    ``until``: the deadline, in Trio's clock; ``client``: the address whose share of the space the spool takes. Each
    wait may be cancelled, and another task may then continue, because no byte is lost.
    A spool must be closed. Methods that wait for the thread raise trio.TooSlowError if the disk hangs.
    Raises OSError if the limit of open files is reached.
    """

    def __init__(self, space: SpoolSpace, position: Position, hasher: _Hash, until: float, client: str = OWN) -> None:
        self._space = space
        self._client = client
        self._position = position
        self._until = until
        self._tap = Tap(hasher, self._write)
        self._charged = position.total
        self._unwritten = memoryview(b"")
        space.promise(client, self._charged)
        self.fd = -1
        self.stored = 0
        """Number of bytes in the file ``fd``; final when :meth:`settle` has returned."""
        self.rest = b""
        """Bytes that were taken and are not in the file."""
        self.full = False
        """Whether writing to the file has failed."""

    @property
    def left(self) -> int:
        """Number of bytes that are still to be taken from a source."""
        return self._position.left

    @property
    def ended(self) -> bool:
        """Whether no more bytes are taken: the body is complete, writing has failed, or the deadline has passed."""
        return not self.left or self.full or trio.current_time() >= self._until

    async def start(self) -> bool:
        """Start the thread unless it has started; return False if there is no thread now."""
        return self._tap.started or await self._tap.start()

    def charge(self, client: str) -> None:
        """Charge the spool to the share of ``client`` from now on."""
        self._charge(client, self._charged)

    def _charge(self, client: str, total: int) -> None:
        self._space.promise(self._client, -self._charged)
        self._space.promise(client, total)
        self._client, self._charged = client, total

    async def put(self, data: bytes) -> None:
        """Take bytes that have been read from the source already. Raises PeerError."""
        self._position.took(len(data))
        self._unwritten = memoryview(bytes(self._unwritten) + data)
        await self._flush()

    async def _flush(self) -> None:
        while self._unwritten:
            self._unwritten = self._unwritten[self._tap.offer(self._unwritten) :]
            if self._unwritten:
                await self._writable()

    async def _writable(self) -> None:
        with trio.fail_at(self._until + _GRACE):
            await self._tap.writable()

    async def pull(self, source: trio.socket.SocketType | SecureSocket, throughput: Throughput) -> None:
        """Take all remaining bytes from ``source``. Bytes taken before a failure are kept.

        Raises PeerError, SourceSlow or SourceLeft.
        """
        if isinstance(source, SecureSocket):
            await self._pull_encrypted(source, throughput)
            return
        origin, inlet, position, budget = source.fileno(), self._tap.inlet, self._position, _YIELD_AFTER
        await self._flush()
        splice, arrived = partial(os.splice, origin, inlet, flags=FLAGS), False
        while not self.ended:
            try:
                taken = await throughput.take(position, min(position.left, PIPE_SIZE), splice)
            except BrokenPipeError:  # the thread is gone, which is not a failure of the source
                self.full = True
                return
            if not taken:
                budget = _YIELD_AFTER
                if arrived:  # the source has bytes, so the pipe is full
                    await self._writable()
                    arrived = False
                else:
                    arrived = await throughput.readable(origin, position.left, self._until)
                continue
            arrived = False
            budget -= taken
            if budget <= 0:
                budget = _YIELD_AFTER
                await trio.lowlevel.checkpoint()

    async def _pull_encrypted(self, source: SecureSocket, throughput: Throughput) -> None:
        """Like :meth:`pull`; the bytes go into the pipe too, because only its thread may wait for the disk."""
        await self._flush()
        position = self._position
        pump = Pump(PlainEnd(lambda: self._tap.inlet), position, None, counts=False)
        try:
            while not self.ended:
                stopped = await pump.run(source, throughput.pace)
                if pump.waited and position.left:
                    throughput.waited(pump.waited, position.left)
                if stopped is Stopped.SOURCE:
                    await throughput.readable(source.polled, position.left, self._until)
                elif stopped is Stopped.SINK:
                    await self._writable()
        except BrokenPipeError:  # the thread is gone, which is not a failure of the source
            self.full = True
        finally:
            self._unwritten = memoryview(bytes(pump.unsent))
            pump.close()

    async def settle(self) -> bool:
        """Wait until all bytes that were taken are hashed and stored; return False if this node failed to do so."""
        await self._flush()
        self._tap.end()
        with trio.fail_at(self._until + _GRACE):
            await self._tap.done.wait()
        self._charge(self._client, self.stored)  # bytes in memory take no disk space
        return not self._tap.broken

    def _write(self, piece: memoryview) -> None:
        """Store a piece; called in the thread."""
        try:
            if self.fd < 0 and not self.full:
                self.fd = self._space.open(self._client)
            while piece and not self.full:
                written = os.write(self.fd, piece)
                self.stored += written
                piece = piece[written:]
        except OSError:
            self.full = True
        self.rest += piece

    def close(self) -> None:
        """Close the file as soon as the thread does not write to it any more."""
        self._tap.end()
        self._charge(self._client, 0)
        if self._tap.started and not self._tap.done.is_set():
            self._tap.on_done = self._close
        else:
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)
