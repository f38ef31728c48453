"""The part of a ``Store`` that answers from the index in memory; the base of all stores.

Questions are answered from the index, and each change of the index is published to the watchers. A subclass adds run(),
which feeds the index, and open(), which finds the bytes. A new question that needs the index only belongs here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar, cast

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Changed, Downloads, Image, inventory
from spegel_consul.store.blob_files import absent
from spegel_consul.store.index import ImageRecord, Index, Snapshot, everything
from spegel_consul.store.inventory import Advertised, StoredImage
from spegel_consul.store.manifest_walk import Document
from spegel_consul.store.tag_times import TagTimes
from spegel_consul.store.watchers import Watchers
from spegel_consul.zerocopy.growing_file import GrowingFile

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

_PEEK_WITHIN = 0.3  # seconds, less than any caller waits, so that a disk that hangs is known to the next ones


class IndexedStore:
    """Base of the stores. ``accept`` is the filter of full image names."""

    def __init__(self, accept: Callable[[str], bool] = everything) -> None:
        self._index = Index(accept)
        self._figures: dict[Callable[[Index], Any], tuple[int, Any]] = {}
        """Results of :mod:`spegel_consul.store.inventory`, each with the version of the index that it is of."""
        self._tag_times = TagTimes()
        self._watchers = Watchers()
        self._problem: str | None = None
        self._peeks = foreign_files.FileCalls(_PEEK_WITHIN)

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    @property
    def problem(self) -> str | None:
        return self._problem

    @property
    def version(self) -> int:
        return self._index.version + self._tag_times.version

    def resolve(self, name: str) -> Digest | None:
        return self._index.resolve(name)

    def tag_age(self, name: str) -> float | None:
        record, digest = self._index.record_of(name), self._index.resolve(name)
        if record is None or digest is None:
            return None
        return self._tag_times.age(record, digest, trio.current_time())

    def describe(self, digest: Digest) -> Descriptor | None:
        return self._index.describe(digest)

    def file(self, digest: Digest) -> str | None:
        return None

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        """Return None; a store whose runtime's downloads can be read overrides these methods."""
        await trio.lowlevel.checkpoint()
        return None

    async def peek(self, digest: Digest, most: int) -> bytes | None:
        path = None if self._index.refuses(digest) else self.file(digest)
        if path is None:
            await trio.lowlevel.checkpoint()
            return None
        with suppress(OSError):
            return await self._peeks.run(partial(foreign_files.read, path, most, follow=False))
        return None

    async def downloads(self) -> Downloads:
        await trio.lowlevel.checkpoint()
        return Downloads()

    def expect(self, digest: Digest) -> None:
        """Do nothing, because the index learns of all content by itself."""

    async def at_work(self) -> int | None:
        await trio.lowlevel.checkpoint()
        return None

    def is_idle(self) -> bool:
        return True

    def images(self) -> tuple[Image, ...]:
        return self._index.images()

    def keys(self) -> frozenset[str]:
        return self._index.keys()

    def stored_images(self) -> tuple[StoredImage, ...]:
        """Return the named images with their sizes, for the status page."""
        return self._figure(inventory.stored_images)

    def image_contents(self) -> Mapping[Digest, int]:
        """Return the sizes of all content of the named images, for the status page."""
        return self._figure(inventory.image_contents)

    def advertised(self) -> Advertised:
        """Return counts of announced names and content, for the status page."""
        return self._figure(inventory.advertised)

    def _figure(self, make: Callable[[Index], _T]) -> _T:
        """Return the result of ``make``, kept until the index changes, because it goes through all of the content."""
        version, figure = self._figures.get(make, (None, None))
        if version != self._index.version:
            version, figure = self._figures[make] = self._index.version, make(self._index)
        return cast("_T", figure)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Changed]]:
        await trio.lowlevel.checkpoint()
        with self._watchers.watch(self.keys()) as watch:
            yield watch

    def _apply(self, snapshot: Snapshot) -> None:
        """Have the index hold exactly the records of ``snapshot``."""
        self._index.apply(snapshot)
        self._tag_times.listed(snapshot.images, trio.current_time(), time.time())

    def _put_image(self, record: ImageRecord) -> None:
        """Add or replace one image record."""
        self._index.put_image(record)
        self._tag_times.saw(record, trio.current_time(), time.time())

    def _drop_image(self, name: str) -> None:
        """Remove an image record, if it exists."""
        self._index.drop_image(name)
        self._tag_times.drop(name)

    def _publish(self) -> Changed:
        """Settle the index and tell the watchers."""
        changed = self._index.settle()
        self._watchers.publish(changed)
        return changed

    def _learn(self, digest: Digest, document: Document | None) -> None:
        """Pass a parsed document to the index; log a warning if an image can't be followed because of it."""
        names = self._index.holders(digest)
        if document is None and names:
            log.warning("image ignored: what it points to is not a manifest", digest=digest, images=names[:3])
        self._index.learn(digest, document)

    def _wanted(self, digest: Digest) -> Descriptor:
        """Return the descriptor of content that is to be opened. Raises BlobUnknown."""
        descriptor = self._index.describe(digest)
        if descriptor is None:
            raise absent(digest)
        return descriptor

    def _forget(self, digest: Digest) -> None:
        """Remove content from the index, because its file is gone."""
        self._index.drop_content(digest)
        self._publish()
