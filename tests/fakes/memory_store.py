"""A store whose content is in memory, for tests of other rooms."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST, OCTET_STREAM, manifest_media_type
from spegel_consul.store import Blob
from spegel_consul.store.blob_files import PIECE, FileBlob
from spegel_consul.store.index import Content, ImageRecord, everything
from spegel_consul.store.indexed_store import IndexedStore
from spegel_consul.store.manifest_walk import ManifestInvalid, parse


class MemoryStore(IndexedStore):
    """Content that is put in and taken out by calls, each of which tells the watchers at once.

    ``files``: give each open blob a file of its own (memfd), so that ``fileno()`` is not None.
    """

    def __init__(self, accept: Callable[[str], bool] = everything, *, files: bool = False) -> None:
        super().__init__(accept)
        self._bytes: dict[Digest, bytes] = {}
        self._files = files
        self._limiter = trio.CapacityLimiter(4)

    def add_content(self, data: bytes, media_type: str = OCTET_STREAM) -> Digest:
        """Put content in, served by its digest unless only refused images hold it."""
        digest = Digest.of(data)
        self._bytes[digest] = data
        self._index.put_content(Content(digest, len(data)))
        self._index.put_image(ImageRecord(digest, Descriptor(digest, len(data), media_type)))
        self._read()
        return digest

    def add_image(self, name: str, manifest: bytes, age: float | None = None) -> Digest:
        """Put a manifest or index in under a full name; it is announced when its parts are there too.

        ``age``: the seconds since the runtime wrote the name, None if it does not say.
        """
        media_type = manifest_media_type(manifest) or OCI_MANIFEST
        digest = self.add_content(manifest, media_type)
        record = ImageRecord(name, Descriptor(digest, len(manifest), media_type))
        if age is None:
            self._index.put_image(record)
        else:
            self._put_image(replace(record, updated_at=time.time() - age))
        self._read()
        return digest

    def remove_image(self, name: str) -> None:
        """Take a name away; the content stays."""
        self._drop_image(name)
        self._publish()

    def remove_content(self, digest: Digest) -> None:
        """Take content away."""
        self._bytes.pop(digest, None)
        self._index.drop_image(digest)
        self._forget(digest)

    @asynccontextmanager
    async def open(self, digest: Digest) -> AsyncIterator[Blob]:
        await trio.lowlevel.checkpoint()
        descriptor = self._wanted(digest)
        if not self._files:
            yield _MemoryBlob(descriptor, self._bytes[digest])
            return
        fd = os.memfd_create(digest)
        with os.fdopen(fd, "wb", closefd=True) as file:
            file.write(self._bytes[digest])
            file.flush()
            yield FileBlob(descriptor, fd, self._limiter)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    def _read(self) -> None:
        while unread := self._index.unread():
            for content in unread:
                try:
                    self._learn(content.digest, parse(self._bytes[content.digest]))
                except ManifestInvalid:
                    self._learn(content.digest, None)
        self._publish()


class _MemoryBlob:
    def __init__(self, descriptor: Descriptor, data: bytes) -> None:
        self._descriptor = descriptor
        self._data = data

    def fileno(self) -> int | None:
        return None

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        return _MemoryChunks(self._data, start, min(stop, len(self._data)))


class _MemoryChunks:
    """No generator: whoever stops half-way need not close it."""

    def __init__(self, data: bytes, start: int, stop: int) -> None:
        self._data = data
        self._starts = iter(range(start, stop, PIECE))
        self._stop = stop

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        for position in self._starts:
            return self._data[position : min(position + PIECE, self._stop)]
        raise StopAsyncIteration
