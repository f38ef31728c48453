# A file is never written in place: a new one is made beside it, brought to the disk, and takes its name in one step.
# Whoever reads meanwhile reads the old one or the new one, whole; so does whoever comes after a crash or after the disk
# was full.  What a crash leaves are files under names that only we use, always the same, so that they can be found.

"""Changes of files and directories that can be interrupted at any point."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spegel_consul.disk import foreign_files

_SUFFIX = ".spegel-consul"
_PATIENCE = 10.0


class DiskError(Exception):
    """A file or directory can't be read or changed; one line that names it and says what to do."""


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """OSError as DiskError: ``doing`` is what was tried with ``path``."""
    try:
        yield
    except OSError as exc:
        hints = {
            errno.EACCES: ": run as root",
            errno.EPERM: ": run as root",
            errno.EROFS: ": mount it so that it can be written",
            errno.EBUSY: ": it is mounted as a single file; mount its directory instead",
            errno.ENOSPC: ": nothing was changed in it; make room",
            errno.ENOTDIR: ": a part of the path is a file",
        }
        raise DiskError(f"can't {doing} {path}: {exc.strerror or exc}{hints.get(exc.errno or 0, '')}") from None


def temporary(path: Path) -> Path:
    """The name under which ``path`` is made ready."""
    return path.with_name(f".{path.name}{_SUFFIX}")


def read(path: Path, *, follow: bool = True) -> bytes | None:
    """The content, or None if there is no such file. Raises DiskError; ``follow`` is as in ``files.read``."""
    with explained(path, "read"):
        try:
            return foreign_files.read(path, foreign_files.CONFIG_SIZE, follow=follow)
        except FileNotFoundError:
            return None


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Put a file with ``content`` at ``path``: mode, owner and attributes of the one that is there, else 0644.

    ``private``: nobody but the owner may read it. Raises DiskError; then the file is what it was.
    """
    with explained(path, "write"):
        before = os.stat(path) if os.path.exists(path) else None  # noqa: PTH110, PTH116

        def prepare(fd: int) -> None:
            mode = 0o644
            if before is not None:
                mode = stat.S_IMODE(before.st_mode)
                os.fchown(fd, before.st_uid, before.st_gid)
                _copy_attributes(path, fd)
            os.fchmod(fd, mode & 0o700 if private else mode)

        foreign_files.write(path, content, mode=0o600, temporary=temporary(path), prepare=prepare)


def keep(path: Path, at: Path) -> None:
    """Give the file ``path`` a second name ``at``, so that it survives when another one takes its place."""
    with explained(at, "make"):
        with suppress(FileNotFoundError):
            os.unlink(at)  # noqa: PTH108
        try:
            os.link(path, at, follow_symlinks=False)
        except OSError as exc:
            if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS):
                raise
            os.rename(_copied(path, at), at)  # noqa: PTH104  # a file system without hard links
        foreign_files.sync_directory(at.parent)


def move(path: Path, to: Path) -> None:
    """Let ``path`` take the place of ``to``."""
    with explained(to, "write"):
        if os.path.lexists(to) and os.path.samestat(os.lstat(path), os.lstat(to)):
            os.unlink(path)  # noqa: PTH108  # two names of one file: rename(2) would keep both
        else:
            try:
                os.rename(path, to)  # noqa: PTH104
            except OSError as exc:
                if exc.errno != errno.EXDEV:
                    raise
                os.rename(_copied(path, to), to)  # noqa: PTH104
                foreign_files.sync_directory(to.parent)
                os.unlink(path)  # noqa: PTH108
        foreign_files.sync_directory(to.parent)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    with explained(path, "remove"), suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def make_directory(path: Path) -> None:
    """Make one directory, unless it is there."""
    with explained(path, "make"), suppress(FileExistsError):
        os.mkdir(path, 0o755)  # noqa: PTH102


def remove_empty(path: Path) -> bool:
    """Remove a directory if it is empty; whether it is gone."""
    with explained(path, "remove"):
        try:
            os.rmdir(path)  # noqa: PTH106
        except FileNotFoundError:
            return True
        except OSError as exc:
            if exc.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
    return True


def keep_edited(place: Path) -> str:
    """Give an edited file a name beside its own that outlives us; says which."""
    content = read(place)
    names = (f"{place.name}.edited{f'.{number}' if number else ''}" for number in itertools.count())
    for beside in map(place.with_name, names):
        if not os.path.lexists(beside):
            keep(place, beside)
            break
        if beside.is_file() and read(beside) == content:
            break  # the same edit, or the same file when this is done once more
    return f"{place} was edited since it was written: that is kept as {beside}"


def sweep(base: Path) -> None:
    """Remove what was made ready for ``base`` and never took its place, or was already on its way out."""
    for path in (base, *base.parents[:-1]):
        clear(temporary(path))


def clear(path: Path) -> None:
    """Remove a directory with all that is in it, or a link in its place without what it leads to."""
    with explained(path, "remove"):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def refuse_link(directory: Path) -> None:
    """Raises DiskError for a directory of our own that is a link, so that nothing is written where it leads."""
    if directory.is_symlink():
        raise DiskError(f"{directory} is a symbolic link, and nobody but an intruder makes one there: remove it")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One at a time works in a directory; who waits longer than a moment is told. Raises DiskError."""
    with explained(directory, "open"):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DiskError(f"another spegel-consul has been at work in {directory} for long") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _copied(path: Path, at: Path) -> Path:
    """A copy of ``path`` under the temporary name of ``at``, on the disk: with its mode, owner, times, attributes."""
    ready = temporary(at)
    with suppress(FileNotFoundError):
        os.unlink(ready)  # noqa: PTH108
    try:
        before = os.lstat(path)
        if stat.S_ISLNK(before.st_mode):
            os.symlink(os.readlink(path), ready)  # noqa: PTH115, PTH211
        else:
            with (
                open(foreign_files.create(ready), "wb") as to,  # noqa: PTH123
                open(foreign_files.open_regular(path, follow=False), "rb") as content,  # noqa: PTH123
            ):
                shutil.copyfileobj(content, to)
        shutil.copystat(path, ready, follow_symlinks=False)
        os.chown(ready, before.st_uid, before.st_gid, follow_symlinks=False)
        if stat.S_ISREG(before.st_mode):
            os.chmod(ready, stat.S_IMODE(before.st_mode))  # noqa: PTH101  # chown takes the setuid bits away
            fd = os.open(ready, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    except OSError:
        with suppress(OSError):
            os.unlink(ready)  # noqa: PTH108
        raise
    return ready


def _copy_attributes(path: Path, fd: int) -> None:
    """Extended attributes, such as the label of SELinux; as far as the file system has them."""
    with suppress(OSError):
        for name in os.listxattr(path):
            with suppress(OSError):
                os.setxattr(fd, name, os.getxattr(path, name))
