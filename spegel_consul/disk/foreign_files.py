"""Reading files that somebody else writes, and replacing files of our own.

What lies at a path is not always what its name promises: a FIFO makes open(2) wait for a writer, a device may act when
it is opened, a link leads to a file that nobody meant to show, a sparse file of 10 GB fills the memory, and a network
file system that is away answers nothing at all.  So every file that others write is opened here:

* only a regular file is opened, and read up to a limit; all else is an OSError whose text says what it is
* links are followed where operators use them (hosts.toml, tokens and certificates, which Kubernetes, Nomad and certbot
  replace by moving a link), and refused where nobody has a reason for one (state, backups, blobs)
* on the event loop the call is made by ``FileCalls``: in a thread, with a time limit, and given up by a stop

A file of our own is replaced in one step from a temporary one, which is always a new file.

A new rule belongs here if it holds for files whatever is in them.  Kernel files (/proc) and files of this package are
read without it; the content directory of containerd is opened by ``store.file``, with the same rules and at less cost.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from spegel_consul.disk.threads import in_thread

T = TypeVar("T")

WITHIN = 5.0
"""Seconds that a call on files may take on the event loop."""

CONFIG_SIZE = 4 << 20
"""Longest file of configuration that is read, in bytes; those of runtimes have a few thousand."""

_PIECE = 1 << 20
_KINDS = (
    (stat.S_ISLNK, errno.ELOOP, "a symbolic link"),
    (stat.S_ISDIR, errno.EISDIR, "a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "a FIFO"),
    (stat.S_ISSOCK, errno.EINVAL, "a socket"),
    (stat.S_ISCHR, errno.EINVAL, "a device"),
    (stat.S_ISBLK, errno.EINVAL, "a device"),
)


def open_regular(path: str | Path, *, follow: bool = True) -> int:
    """A descriptor of the regular file at ``path``, for reading. Raises OSError; never waits for another process.

    ``follow``: whether a link in the last part of the path is followed.
    """
    # before it is opened, because opening a device may act on it
    _check(path, Path(path).stat(follow_symlinks=follow))
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    try:
        _check(path, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def read(path: str | Path, limit: int, *, follow: bool = True) -> bytes:
    """The content of a regular file of ``limit`` bytes at most. Raises OSError."""
    fd = open_regular(path, follow=follow)
    try:
        content = bytearray()
        if os.fstat(fd).st_size <= limit:
            while len(content) <= limit:
                piece = os.read(fd, min(_PIECE, limit + 1 - len(content)))
                if not piece:
                    return bytes(content)
                content += piece
    finally:
        os.close(fd)
    raise OSError(errno.EFBIG, f"has more than {size(limit)}, which is too long for what it should be", str(path))


def stamp(path: str | Path) -> tuple[int, int, int, int]:
    """What changes when the file at ``path`` is replaced, written or given other rights. Raises OSError."""
    status = Path(path).stat()
    # the time of modification can be set by anybody (cp -p, rsync -t), the time of change only by the kernel
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def write(
    path: Path,
    content: bytes,
    *,
    mode: int = 0o644,
    temporary: Path | None = None,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """Put a file with ``content`` at ``path`` in one step, on the disk when this returns. Raises OSError.

    ``temporary``: the name under which it is made ready, in the same directory. ``prepare`` is called with the
    descriptor before the file takes its place, and may set the mode.
    """
    ready = temporary or path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = create(ready)
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(fd, left) :]
            os.fchmod(fd, mode)
            if prepare is not None:
                prepare(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(ready, path)  # noqa: PTH104
        sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            os.unlink(ready)  # noqa: PTH108
        raise


def create(path: Path) -> int:
    """A descriptor of a new, empty file that only its owner may read. What had the name before is removed.

    Raises OSError. A link that waits there is never written through, because the file is made exclusively.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def sync_directory(directory: Path) -> None:
    """Bring the names in ``directory`` to the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FileCalls:
    """Makes calls that touch files in a thread, one at a time, each within ``within`` seconds.

    One object for each thing that is read, so that a file system that hangs costs one thread and holds up nothing else.
    """

    def __init__(self, within: float = WITHIN) -> None:
        self._within = within
        self._limiter = trio.CapacityLimiter(1)
        self._late = False

    async def run(self, call: Callable[[], T]) -> T:
        """What ``call`` returns or raises. Raises OSError (ETIMEDOUT) if it takes too long.

        While a call that was late still hangs, the next ones raise at once. A cancelled call goes on in its thread and
        its result is dropped, so ``call`` must return nothing that has to be closed.
        """
        if not (self._late and self._limiter.borrowed_tokens):
            self._late = False
            with trio.move_on_after(self._within):
                return await in_thread(call, self._limiter)
            self._late = True
        await trio.lowlevel.checkpoint()
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._within:g} s: is its file system there?")


def size(limit: int) -> str:
    """A number of bytes as people write it."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if limit >= unit:
            return f"{limit / unit:g} {name}"
    return f"{limit} bytes"


def _check(path: str | Path, status: os.stat_result) -> None:
    for is_kind, number, what in _KINDS:
        if is_kind(status.st_mode):
            raise OSError(number, f"it is {what}: put a regular file there", str(path))
