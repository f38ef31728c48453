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
# A file is never used twice: sendfile hands its pages to the socket, and they may still be read from there.

"""Holding a body back in an unnamed file, and hashing it on the way there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from spegel_consul.blocking import in_thread
from spegel_consul.server.source import Pace, Source, SourceFailed
from spegel_consul.server.tap import FLAGS, PIPE_SIZE, Tap

if TYPE_CHECKING:
    from hashlib import _Hash

_TURN = 4 << 20  # bytes after which everybody else in the process has a turn
_READ = 1 << 18
_GLANCE = 0.25  # seconds between two glances at the client, if the source makes us wait
_IN_MEMORY = 64 << 20  # bytes of all spools together where there is no directory
_GRACE = 5.0  # seconds that the disk may take when there is no time left
_LONG = 4 << 20  # bytes whose pages take a while to free
_SHARE = 2  # of what a file system has free, spools take one part in so many


class Room:
    """Where spools may be: in ``directory``, else where temporary files are, else in memory."""

    def __init__(self, directory: Path | None) -> None:
        self._directories = [str(directory)] if directory is not None else []
        with suppress(OSError):
            self._directories.append(tempfile.gettempdir())
        self.promised = 0
        """Bytes that the spools there are will have."""

    def open(self) -> int:
        """A file for bytes that are promised already; call it in a thread. Raises OSError if there is no room."""
        for directory in self._directories:
            with suppress(OSError):
                found = os.statvfs(directory)
                if self.promised <= found.f_bavail * found.f_frsize // _SHARE:
                    return _unnamed(directory)
        if self._directories or self.promised > _IN_MEMORY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.memfd_create("spool")


def _unnamed(directory: str) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # a file system that knows no such files
        fd, path = tempfile.mkstemp(prefix=".spool-", dir=directory)
        Path(path).unlink()
        return fd


class Spool:
    """Takes ``total`` bytes, from one source after another, until :attr:`left` is 0 or it :attr:`ended` before.

    ``until``: when that is at the latest, in Trio's time; ``glance``: raises OSError if nobody waits for the bytes.
    Close it in any case. What waits for the thread raises trio.TooSlowError if the disk hangs.
    """

    def __init__(self, room: Room, total: int, hasher: _Hash, until: float, glance: Callable[[], None]) -> None:
        self._room = room
        self._total = total
        self._until = until
        self._glance = glance
        self._next_glance = trio.current_time() + _GLANCE
        self._tap = Tap(hasher, self._write)
        room.promised += total
        self.left = total
        """How many bytes are still to be taken from a source."""
        self.sent = 0
        """How many of its bytes the client has got."""
        self.fd = -1
        self.stored = 0
        """How many bytes are in the file ``fd``; settled when :meth:`settle` has returned."""
        self.rest = b""
        """What was taken and is not in the file."""
        self.full = False
        """Whether the file can't be written."""

    @property
    def ended(self) -> bool:
        """Whether no more is to be taken, be it that all is there."""
        return not self.left or self.full or trio.current_time() >= self._until

    async def start(self) -> bool:
        """Begin, or return False if there is no thread now."""
        return await self._tap.start()

    async def put(self, data: bytes) -> None:
        """Take bytes that were already read from the source. Raises SourceFailed."""
        if len(data) > self.left:
            raise SourceFailed("sent more bytes than it promised", broken=True)
        with trio.fail_at(self._until + _GRACE):
            await self._tap.write(data)
        self.left -= len(data)

    async def pull(self, source: Source, pace: Pace) -> None:
        """Take all that is left from ``source``. Raises SourceFailed or SourceSlow; what was taken before is kept."""
        origin, inlet, turn = source.fileno(), self._tap.inlet, _TURN
        arrived = False
        while not self.ended:
            try:
                taken = os.splice(origin, inlet, min(self.left, PIPE_SIZE), flags=FLAGS)
            except BlockingIOError:
                turn = _TURN
                if arrived:  # so it is the pipe that has no room
                    with trio.fail_at(self._until + _GRACE):
                        await self._tap.writable()
                    arrived = False
                else:
                    began = trio.current_time()
                    arrived = await self._arrival(origin, pace.stall)
                    if not arrived and not self.ended:
                        raise SourceFailed(f"sent nothing for {pace.stall:g} s", hung=True) from None
                    pace.waited(trio.current_time() - began, self.left)
                continue
            except OSError as exc:
                raise SourceFailed(exc.strerror or repr(exc)) from None
            if taken == 0:
                raise SourceFailed("closed the connection")
            arrived = False
            self.left -= taken
            turn -= taken
            if turn <= 0:
                turn = _TURN
                self._glance()
                await trio.lowlevel.checkpoint()

    async def _arrival(self, origin: int, patience: float) -> bool:
        """Whether bytes came in time."""
        deadline = min(trio.current_time() + patience, self._until)
        while (now := trio.current_time()) < deadline:
            if now >= self._next_glance:
                self._next_glance = now + _GLANCE
                self._glance()
            with trio.move_on_at(min(self._next_glance, deadline)):
                await trio.lowlevel.wait_readable(origin)
                return True
        return False

    async def settle(self) -> None:
        """Return when all that was taken is hashed and stored."""
        self._tap.end()
        with trio.fail_at(self._until + _GRACE):
            await self._tap.done.wait()

    def count(self, sent: int) -> None:
        """So many bytes more have been sent."""
        self.sent += sent

    async def read(self, start: int) -> bytes:
        """Some of what was taken, from byte ``start`` on; none at the end."""
        if start >= self.stored:
            return self.rest[start - self.stored :]
        return await in_thread(partial(os.pread, self.fd, min(_READ, self.stored - start), start))

    def _write(self, piece: memoryview) -> None:
        """Called in the thread."""
        try:
            if self.fd < 0 and not self.full:
                self.fd = self._room.open()
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
        self._room.promised -= self._total
        self._total = 0
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
