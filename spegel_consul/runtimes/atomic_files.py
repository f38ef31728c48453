"""Changes of files and directories that can be interrupted at any point.

A file is never written in place. A new file is written beside it, synced to the disk and renamed. A reader sees the
complete old file or the complete new one, also after a crash and after the disk was full. A crash may leave temporary
files; their names are fixed and used by no other program, so :func:`sweep` finds them.

A new kind of change to a configuration file belongs here; the order of changes belongs to
:mod:`spegel_consul.runtimes.backup`.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words

_SUFFIX = ".spegel-consul"
_LOCK_TIMEOUT = 10.0  # seconds


class DiskError(Exception):
    """A file or directory can't be read or changed; the message is one line that names it and says what to do."""


class Dangling(DiskError):
    """A symbolic link to a missing file. It may be there on the host, while a container has only the link's directory.

    So such a link is not "no file": a new file in its place would not have the settings of the other.
    """

    def __init__(self, link: Path, target: Path) -> None:
        super().__init__(
            f"{link} is a link to {target}, which does not exist here: mount that too, or replace the link"
        )


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Raises OSError as DiskError; ``doing`` is the verb of the message: ``can't <doing> <path>``."""
    try:
        yield
    except OSError as exc:
        hints = {
            errno.EACCES: ": run as root",
            errno.EPERM: ": run as root",
            errno.EROFS: ": mount it so that it can be written",
            errno.EBUSY: ": it is mounted as a single file; mount its directory instead",
            errno.ENOSPC: ": nothing was changed in it; free some disk space",
            errno.ENOTDIR: ": a part of the path is a file",
        }
        raise DiskError(f"can't {doing} {path}: {in_words(exc)}{hints.get(exc.errno or 0, '')}") from None


def temporary(path: Path) -> Path:
    """The temporary name of ``path``."""
    return path.with_name(f".{path.name}{_SUFFIX}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of ``temporary``."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def read(path: Path, *, follow: bool = True) -> bytes | None:
    """The content, or None if there is no such file. Raises DiskError, or Dangling for a link to a missing file.

    ``follow`` is as in ``foreign_files.read``.
    """
    with explained(path, "read"):
        try:
            return foreign_files.read(path, foreign_files.CONFIG_SIZE, follow=follow)
        except FileNotFoundError:
            for part in (path, *path.parents):
                if part.is_symlink() and not part.exists():
                    raise Dangling(part, part.readlink()) from None
            return None


def write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Replace ``path`` by a file with ``content`` and the mode, owner and attributes of the old one, else mode 0644.

    ``private``: only the owner may read it. Raises DiskError; the file is unchanged then.
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
    """Hard-link the file ``path`` to ``at``, so that it survives its replacement. Raises DiskError."""
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
    """Rename ``path`` to ``to``, also across file systems. Raises DiskError."""
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
    """Remove a file, if it exists. Raises DiskError."""
    with explained(path, "remove"), suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def make_directory(path: Path) -> None:
    """Make one directory with mode 0755, unless it exists. Raises DiskError.

    The mode does not depend on the umask, because clients of other users read the files in it (podman, skopeo).
    """
    with explained(path, "make"), suppress(FileExistsError):
        os.mkdir(path, 0o755)  # noqa: PTH102
        os.chmod(path, 0o755)  # noqa: PTH101, S103


def remove_empty(path: Path) -> bool:
    """Remove a directory if it is empty. Returns whether it does not exist any more. Raises DiskError."""
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


def mount_points() -> set[str]:
    """The mount points of this process, with those for a part of the same file system, which os.path.ismount misses."""
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return set()
    octal = re.compile(rb"\\([0-7]{3})")  # a space is \040 (proc_pid_mountinfo(5))
    return {os.fsdecode(octal.sub(lambda found: bytes([int(found[1], 8)]), line.split()[4])) for line in lines}


def keep_edited(path: Path) -> str:
    """Keep an edited file as NAME.edited, NAME.edited.1 and so on. Returns a line that says which. Raises DiskError."""
    content = read(path)
    names = (f"{path.name}.edited{f'.{number}' if number else ''}" for number in itertools.count())
    for beside in map(path.with_name, names):
        if not os.path.lexists(beside):
            keep(path, beside)
            break
        if beside.is_file() and read(beside) == content:
            break  # the same edit, or the same file if an interrupted change is repeated
    return f"{path} was edited since it was written: that is kept as {beside}"


def sweep(base: Path) -> None:
    """Remove the temporary files of ``base`` and its parents that an interrupted change has left."""
    for path in (base, *base.parents[:-1]):
        clear(temporary(path))


def clear(path: Path) -> None:
    """Remove a directory with its content, or a symbolic link without its target."""
    with explained(path, "remove"):
        if path.is_symlink():
            path.unlink()
        elif path.is_dir():
            shutil.rmtree(path)


def refuse_link(directory: Path) -> None:
    """Raises DiskError if our own directory is a symbolic link, so that nothing is written to its target."""
    with explained(directory, "read"):
        is_link = directory.is_symlink()
    if is_link:
        raise DiskError(f"{directory} is a symbolic link, which only an intruder would make there: remove it")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a directory against other processes of this program. Raises DiskError after 10 s."""
    with explained(directory, "open"):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    message = f"another spegel-consul holds the lock of {directory}: try again when it has ended"
                    raise DiskError(message) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _copied(path: Path, at: Path) -> Path:
    """Copy ``path`` to the temporary name of ``at`` and sync it: with its mode, owner, times and attributes."""
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
    """Copy extended attributes, such as the label of SELinux, as far as the file system supports them."""
    with suppress(OSError):
        for name in os.listxattr(path):
            with suppress(OSError):
                os.setxattr(fd, name, os.getxattr(path, name))
