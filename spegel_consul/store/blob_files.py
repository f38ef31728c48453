"""Blobs in plain files, and their paths below a ``blobs`` directory.

Files are opened and read in threads, because the disk may be slow; the event loop opens one only if the kernel has its
name and inode in memory (:func:`open_cached`). The file's descriptor is public, so that the sender
can leave the copying to the kernel. A file that is deleted while it is open stays readable, so a client gets the whole
file that it has begun to download.

A new rule about the files that may be served as blobs belongs here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import trio

from spegel_consul.disk.threads import close, open_in_thread, read
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown

SMALL = 64 << 10
"""Bytes up to which content is read completely and verified before it is sent; clients verify larger content."""

PIECE = 1 << 20
"""Largest number of bytes of one read."""


_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW  # O_NONBLOCK, because of FIFOs
_OPENAT2 = 437  # on all architectures
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_UNTOLD = frozenset({errno.EAGAIN, errno.ENOSYS, errno.EINVAL, errno.EPERM})


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of openat2(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


_READ = _OpenHow(_FLAGS, 0, _RESOLVE_CACHED)
_LOOK = _OpenHow(os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE_CACHED)
_openat2 = ctypes.PyDLL(None, use_errno=True).syscall  # PyDLL, because other threads need not run meanwhile
_openat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_openat2.restype = ctypes.c_long


class Damaged(OSError):
    """A file does not have the digest in its name."""


def absent(digest: Digest) -> BlobUnknown:
    """Return the error for content that this node does not have."""
    return BlobUnknown(f"blob {digest} is not on this node", {"digest": digest})


def blob_path(blobs: Path, digest: Digest) -> Path:
    """Return the path of ``digest`` below a ``blobs`` directory (image-layout.md; containerd does the same)."""
    return blobs / digest.algorithm / digest.encoded


def blob_file(root: Path, digest: Digest) -> str:
    """Return the same path for the ``blobs`` directory in ``root``, as text, because a path object costs more."""
    return f"{root}/blobs/{digest.replace(':', '/', 1)}"


class FileBlob:
    """A blob in a plain file, whose descriptor ``fd`` close() closes."""

    def __init__(self, descriptor: Descriptor, fd: int, limiter: trio.CapacityLimiter) -> None:
        self._descriptor = descriptor
        self._fd = fd
        self._limiter = limiter

    def fileno(self) -> int | None:
        return self._fd

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        return _FileChunks(self._descriptor.digest, self._fd, start, min(stop, self._descriptor.size), self._limiter)

    def close(self) -> None:
        close(self._fd)


class _FileChunks:
    """The pieces of a file. This is no generator, because a caller that stops early would have to close that."""

    def __init__(self, digest: Digest, fd: int, start: int, stop: int, limiter: trio.CapacityLimiter) -> None:
        self._digest = digest
        self._fd = fd
        self._position = start
        self._stop = stop
        self._limiter = limiter

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._position >= self._stop:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        length = min(PIECE, self._stop - self._position)
        try:
            piece = await read(self._fd, length, self._position, self._limiter)
        except OSError as exc:
            # a failing disk is reported as absent content, because a peer may have the rest
            raise absent(self._digest) from exc
        if not piece:
            raise absent(self._digest)
        self._position += len(piece)
        return piece


async def open_file(path: Path, descriptor: Descriptor, limiter: trio.CapacityLimiter) -> FileBlob:
    """Open the file at ``path``, which holds the content of ``descriptor``.

    Raises FileNotFoundError if it does not exist or can't be that content, Damaged if it is small and does not have
    its digest, and OSError if it can't be read.
    """
    fd = await open_in_thread(partial(_open_checked, path, descriptor), limiter)
    return FileBlob(descriptor, fd, limiter)


def _open_checked(path: Path, descriptor: Descriptor) -> int:
    fd = open_blob(path, descriptor.size)
    try:
        if descriptor.size <= SMALL and not descriptor.digest.fits(os.pread(fd, descriptor.size, 0)):
            # not FileNotFoundError, because the file may still be being written and must stay in the index
            raise Damaged(errno.EIO, "the bytes do not have the digest in the name", str(path))
    except OSError:
        os.close(fd)
        raise
    return fd


def open_blob(path: str | Path, size: int) -> int:
    """Open the blob of ``size`` bytes at ``path``: the rule of ``disk.foreign_files``, in two calls.

    Raises FileNotFoundError if there is no file, or if it has another size or is not a regular file, such as a link to
    a file that was never meant to be served. Raises OSError if it can't be opened.
    """
    try:
        return _checked(os.open(path, _FLAGS), path, size)
    except OSError as exc:
        if exc.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise
        raise FileNotFoundError(f"{path} is not a regular file") from None


def open_cached(path: str, size: int) -> int:
    """Open a blob as :func:`open_blob`, for the event loop.

    Raises BlockingIOError if the disk may have to be waited for, or if the kernel can't tell (before Linux 5.12, and in
    sandboxes without openat2(2)).
    """
    return _checked(_open_cached(path, _READ), path, size)


def may_be_there(path: str) -> bool:
    """Whether there is a file at ``path``, for the event loop; True if only the disk can tell."""
    try:
        os.close(_open_cached(path, _LOOK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def changed_at(path: str) -> int:
    """Return the time of the last change of the directory ``path`` in nanoseconds, for the event loop; 0 if it is gone.

    Raises BlockingIOError as :func:`open_cached`, and OSError if this process may not look.
    """
    try:
        fd = _open_cached(path, _LOOK)
    except FileNotFoundError:
        return 0
    try:
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


def _open_cached(path: str, how: _OpenHow) -> int:
    fd: int = _openat2(_OPENAT2, _AT_FDCWD, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code in _UNTOLD:
        raise BlockingIOError(errno.EAGAIN, "the disk may have to be waited for", path)
    raise OSError(code, os.strerror(code), path)


def _checked(fd: int, path: str | Path, size: int) -> int:
    """Return the descriptor if it is that of a blob of ``size`` bytes, else close it."""
    try:
        status = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    if not is_blob(status, size):
        os.close(fd)
        raise FileNotFoundError(f"{path} is not a regular file of {size} bytes")
    return fd


def is_blob(status: os.stat_result, size: int) -> bool:
    """Whether a file with ``status`` (of lstat, not of a link's target) can be a blob of ``size`` bytes."""
    return stat.S_ISREG(status.st_mode) and status.st_size == size
