"""Reads files that other programs write, and replaces files of this program.

A path may name something else than the expected file: open(2) of a FIFO waits for a writer, a device may act when it is
opened, a symbolic link may lead to a private file, a sparse file of 10 GB fills the memory, and a network file system
without its server does not answer. So every file of another program is opened here:

* Only a regular file is opened, and it is read up to a limit. Anything else is an OSError whose text names its kind.
* Symbolic links are followed where operators use them (hosts.toml, tokens and certificates, which Kubernetes, Nomad and
  certbot replace by moving a link). They are refused where no program makes one (state, backups, blobs).
* On the event loop, ``FileCalls`` makes the call: in a thread, with a time limit, and abandoned by a stop.

A file of this program is replaced by a rename of a temporary file, which is always a new file.

A new rule belongs here if it is independent of the content of files. Kernel files (/proc) and files of this package are
read directly. ``store.blob_files`` opens containerd's content directory, with the same rules and at less cost.
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
"""Time limit of a call on files for the event loop, in seconds."""

CONFIG_SIZE = 4 << 20
"""Size limit of a configuration file, in bytes; those of runtimes have a few thousand."""

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
    raise OSError(errno.EFBIG, f"has more than {size(limit)}, the limit for this kind of file", str(path))


def may_exist(path: str | Path) -> bool:
    """Whether there is something at ``path``. True if this process may not look: using the path names that reason."""
    try:
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def stamp(path: str | Path) -> tuple[int, int, int, int]:
    """A value that changes when the file is replaced, written or given another mode. Raises OSError."""
    status = Path(path).stat()
    # programs can set the time of modification (cp -p, rsync -t), but only the kernel sets the time of change
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size


def write(
    path: Path,
    content: bytes,
    *,
    mode: int = 0o644,
    temporary: Path | None = None,
    prepare: Callable[[int], None] | None = None,
) -> None:
    """Replace ``path`` by a file with ``content``, which is synced to the disk. Raises OSError.

    ``temporary``: the temporary name, in the same directory. ``prepare`` is called with the descriptor before the
    rename, and may set the mode.
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
    """A descriptor of a new, empty file that only its owner may read. An older file of that name is removed.

    Raises OSError. A symbolic link of that name is never followed, because the file is created exclusively.
    """
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def sync_directory(directory: Path) -> None:
    """Sync the names in ``directory`` to the disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FileCalls:
    """Makes calls that touch files in a thread, one at a time, each within ``within`` seconds.

    Each followed file or directory has its own object, so that a file system that hangs blocks one thread and no other
    files.
    """

    def __init__(self, within: float = WITHIN) -> None:
        self._within = within
        self._limiter = trio.CapacityLimiter(1)
        self._late = False

    async def run(self, call: Callable[[], T]) -> T:
        """The result of ``call``. Raises its exception, or OSError (ETIMEDOUT) after the time limit.

        While a late call still hangs, the next ones raise immediately. A cancelled call goes on in its thread and its
        result is dropped, so the result must not need to be closed.
        """
        if not (self._late and self._limiter.borrowed_tokens):
            self._late = False
            with trio.move_on_after(self._within):
                return await in_thread(call, self._limiter)
            self._late = True
        await trio.lowlevel.checkpoint()
        raise TimeoutError(errno.ETIMEDOUT, f"no answer within {self._within:g} s: check its file system")


def size(limit: int) -> str:
    """A number of bytes for people: ``4 MiB``."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if limit >= unit:
            return f"{limit / unit:g} {name}"
    return f"{limit} bytes"


def _check(path: str | Path, status: os.stat_result) -> None:
    for is_kind, number, what in _KINDS:
        if is_kind(status.st_mode):
            raise OSError(number, f"it is {what}: put a regular file there", str(path))
