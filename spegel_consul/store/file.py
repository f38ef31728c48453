# The bytes of a blob in a file.  Opening and reading wait for a disk, so they happen in threads; the file's
# number is given away so that whoever sends the bytes may leave the copying to the kernel.
#
# A file that is deleted while it is open stays readable: what a client has begun to download it gets.

"""Blobs that are plain files, and finding them below a ``blobs`` directory."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import trio

from spegel_consul.blocking import in_thread, open_in_thread
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown

PIECE = 1 << 20
"""Bytes that one read returns at most."""


def absent(digest: Digest) -> BlobUnknown:
    """The error for content that this node does not have."""
    return BlobUnknown(f"blob {digest} is not on this node", {"digest": digest})


def blob_path(blobs: Path, digest: Digest) -> Path:
    """Where ``digest`` lies below a ``blobs`` directory (image-layout.md; containerd does the same)."""
    return blobs / digest.algorithm / digest.encoded


def blob_file(root: Path, digest: Digest) -> str:
    """The same for the ``blobs`` directory in ``root``, as text and without the cost of a path object."""
    return f"{root}/blobs/{digest.replace(':', '/', 1)}"


class FileBlob:
    """A blob in a plain file. Closes the file's descriptor ``fd`` in close()."""

    def __init__(self, descriptor: Descriptor, fd: int, limiter: trio.CapacityLimiter) -> None:
        self._descriptor = descriptor
        self._fd = fd
        self._limiter = limiter

    @property
    def descriptor(self) -> Descriptor:
        return self._descriptor

    def fileno(self) -> int | None:
        return self._fd

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        return _FileChunks(self._descriptor.digest, self._fd, start, min(stop, self._descriptor.size), self._limiter)

    def close(self) -> None:
        os.close(self._fd)


class _FileChunks:
    """No generator: whoever stops half-way need not close it."""

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
            piece = await in_thread(partial(os.pread, self._fd, length, self._position), self._limiter)
        except OSError as exc:
            # a disk that fails: somebody else may have the rest
            raise absent(self._digest) from exc
        if not piece:
            raise absent(self._digest)
        self._position += len(piece)
        return piece


async def open_file(path: Path, descriptor: Descriptor, limiter: trio.CapacityLimiter) -> FileBlob:
    """Open the file at ``path``, which holds the content of ``descriptor``.

    Raises FileNotFoundError if it does not exist or can't be that content, OSError if it can't be read.
    """
    fd = await open_in_thread(partial(_open, path, descriptor.size), limiter)
    return FileBlob(descriptor, fd, limiter)


def _open(path: Path, size: int) -> int:
    # not blocking, lest a FIFO that somebody put there hold the thread
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        os.close(fd)
        raise FileNotFoundError(f"{path} is not a plain file of {size} bytes")
    return fd
