# Bytes that are kept until it is known whether they are right.
#
#        source ──splice──▶ pipe ──read──▶ hash and file      (in a thread)
#
# The file has no name and goes away with its descriptor.  It is in the data directory, on a disk: there its pages
# are the page cache's, which gives them back when memory is short, while in /dev/shm they would count against the
# sidecar's cgroup until they are sent.  Most files are so short-lived that the disk never sees them.  Only the thread
# writes, since a disk that is busy makes it wait.
#
# A spool may end early: there is no time left, or no room.  What it has by then is in the file, or was on its way there
# and is kept in memory, at most the pipe full; whoever filled it sends that and goes on without.
#
# A file is never written twice: sendfile hands its pages to the socket, and they may still be read from there.  Any
# number of clients may be sent from it at once, each from an offset of its own.
#
# The disk is shared fairly.  This node's own runtime may have all of the room.  Other machines together may have half
# of it and each of them a quarter, because a client that reads slowly occupies its spool for as long as it likes.

"""HeldBody a body back in an unnamed file, and hashing it on the way there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spegel_consul.zerocopy.hash_tap import FLAGS, PIPE_SIZE, Tap
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.source import Source, SourceFailed, Throughput

if TYPE_CHECKING:
    from hashlib import _Hash

_TURN = 4 << 20  # bytes after which everybody else in the process has a turn
_CHECK_CLIENT = 0.25  # seconds between two glances at the client, if the source makes us wait
_IN_MEMORY = 64 << 20  # bytes of all spools together where there is no directory
_GRACE = 5.0  # seconds that the disk may take when there is no time left
_LONG = 4 << 20  # bytes whose pages take a while to free
_SHARE = 2  # of what a file system has free, spools take one part in so many
_REMOTE = 2  # and of that, those for other machines together one part in so many,
_EACH = 4  # and those for one address one part in so many

OWN = ""
"""Stands for this machine where the address of a client is asked for."""


class SpoolSpace:
    """Where spools may be: in ``directory``, else where temporary files are, else in memory."""

    def __init__(self, directory: Path | None) -> None:
        self._directories = [str(directory)] if directory is not None else []
        with suppress(OSError):
            self._directories.append(tempfile.gettempdir())
        self.promised = 0
        """Bytes that the spools there are will have."""
        self.by_client: Counter[str] = Counter()
        """The same by the address of the client that a spool is for; :data:`OWN` is this machine."""

    def promise(self, client: str, total: int) -> None:
        """A spool for ``client`` will have ``total`` bytes; a negative number is one that is gone."""
        self.promised += total
        self.by_client[client] += total
        if not self.by_client[client]:
            del self.by_client[client]

    def _has(self, client: str, size: int) -> bool:
        """Whether what is promised to ``client`` is within its share of a room of ``size`` bytes."""
        if self.promised > size:
            return False
        if client == OWN:
            return True
        remote = self.promised - self.by_client[OWN]
        return remote <= size // _REMOTE and self.by_client[client] <= size // _EACH

    def open(self, client: str) -> int:
        """A file for bytes that are promised already; call it in a thread. Raises OSError if there is no room."""
        for directory in self._directories:
            with suppress(OSError):
                found = os.statvfs(directory)
                if self._has(client, found.f_bavail * found.f_frsize // _SHARE):
                    return _unnamed(directory)
        if self._directories or not self._has(client, _IN_MEMORY):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.memfd_create("spool")

    def spare(self) -> int:
        """Bytes that may be promised besides, where there is most room; call it in a thread."""
        rooms = [] if self._directories else [_IN_MEMORY]
        for directory in self._directories:
            with suppress(OSError):
                found = os.statvfs(directory)
                rooms.append(found.f_bavail * found.f_frsize // _SHARE)
        return max(rooms, default=0) - self.promised


def _unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system that knows no such files
        fd, path = tempfile.mkstemp(prefix=".spool-", dir=directory)
        Path(path).unlink()
        return fd


class Spool:
    """Takes what ``position`` lacks, from one source after another, until all is there or it :attr:`ended` before.

    ``until``: when that is at the latest, in Trio's time; ``client``: whose share of the room it takes. Each wait may
    be cancelled, and another task may go on then: no byte is lost.
    Close it in any case. What waits for the thread raises trio.TooSlowError if the disk hangs.
    Raises OSError if the limit of open files is reached.
    """

    def __init__(self, room: SpoolSpace, position: Position, hasher: _Hash, until: float, client: str = OWN) -> None:
        self._room = room
        self._client = client
        self._position = position
        self._until = until
        self._next_check = trio.current_time() + _CHECK_CLIENT
        self._tap = Tap(hasher, self._write)
        self._charged = position.total
        self._unwritten = memoryview(b"")
        room.promise(client, self._charged)
        self.check_client: Callable[[], None] = lambda: None
        """Raises OSError if the client for which bytes are taken has left."""
        self.fd = -1
        self.stored = 0
        """How many bytes are in the file ``fd``; settled when :meth:`settle` has returned."""
        self.rest = b""
        """What was taken and is not in the file."""
        self.full = False
        """Whether the file can't be written."""

    @property
    def left(self) -> int:
        """How many bytes are still to be taken from a source."""
        return self._position.left

    @property
    def ended(self) -> bool:
        """Whether no more is to be taken, be it that all is there."""
        return not self.left or self.full or trio.current_time() >= self._until

    async def start(self) -> bool:
        """Begin, unless it has begun; return False if there is no thread now."""
        return self._tap.started or await self._tap.start()

    def charge(self, client: str) -> None:
        """Count it to the share of ``client`` from now on."""
        self._charge(client, self._charged)

    def _charge(self, client: str, total: int) -> None:
        self._room.promise(self._client, -self._charged)
        self._room.promise(client, total)
        self._client, self._charged = client, total

    async def put(self, data: bytes) -> None:
        """Take bytes that were already read from the source. Raises SourceFailed."""
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

    async def pull(self, source: Source, throughput: Throughput) -> None:
        """Take all that is left from ``source``. Raises SourceFailed or SourceSlow; what was taken before is kept."""
        origin, inlet, position, turn = source.fileno(), self._tap.inlet, self._position, _TURN
        await self._flush()
        arrived = False
        while not self.ended:
            try:
                taken = os.splice(origin, inlet, min(position.left, PIPE_SIZE), flags=FLAGS)
            except BlockingIOError:
                turn = _TURN
                if arrived:  # so it is the pipe that has no room
                    await self._writable()
                    arrived = False
                else:
                    began = trio.current_time()
                    arrived = await self._arrival(origin, throughput.stall)
                    if not arrived and not self.ended:
                        raise SourceFailed(f"sent nothing for {throughput.stall:g} s", hung=True) from None
                    throughput.waited(trio.current_time() - began, position.left)
                continue
            except BrokenPipeError:  # the thread is gone, which is no source's fault
                self.full = True
                return
            except OSError as exc:
                raise SourceFailed(exc.strerror or repr(exc)) from None
            if taken == 0:
                raise SourceFailed("closed the connection")
            arrived = False
            position.took(taken)
            turn -= taken
            if turn <= 0:
                turn = _TURN
                self.check_client()
                await trio.lowlevel.checkpoint()

    async def _arrival(self, origin: int, patience: float) -> bool:
        """Whether bytes came in time."""
        deadline = min(trio.current_time() + patience, self._until)
        while (now := trio.current_time()) < deadline:
            if now >= self._next_check:
                self._next_check = now + _CHECK_CLIENT
                self.check_client()
            with trio.move_on_at(min(self._next_check, deadline)):
                await trio.lowlevel.wait_readable(origin)
                return True
        return False

    async def settle(self) -> bool:
        """Return when all that was taken is hashed and stored; False if it could not be, for a fault of this node."""
        await self._flush()
        self._tap.end()
        with trio.fail_at(self._until + _GRACE):
            await self._tap.done.wait()
        self._charge(self._client, self.stored)  # what is not in the file takes no room
        return not self._tap.broken

    def _write(self, piece: memoryview) -> None:
        """Called in the thread."""
        try:
            if self.fd < 0 and not self.full:
                self.fd = self._room.open(self._client)
            while piece and not self.full:
                written = os.write(self.fd, piece)
                self.stored += written
                piece = piece[written:]
        except OSError:
            self.full = True
        self.rest += piece

    def close(self) -> None:
        """Let go of the file, as soon as nobody writes to it any more."""
        self._tap.end()
        self._charge(self._client, 0)
        if self._tap.started and not self._tap.done.is_set():
            self._tap.on_done = self._close
        else:
            self._close()

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        if self.stored > _LONG:
            with suppress(RuntimeError):  # the limit of processes is reached
                trio.lowlevel.start_thread_soon(lambda: os.close(fd), lambda _: None)
                return
        os.close(fd)
