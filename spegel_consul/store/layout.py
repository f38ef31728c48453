"""``Store`` over an OCI image layout: a directory with index.json and blobs/<algorithm>/<hex>.

A layout sends no events. So in each interval the store compares the stamps of index.json and of the blob directories,
and reads everything again if one differs. A writer may be in the middle of a change, so an index.json that can't be
parsed leaves the last valid one in force, and one that is missing does so until the next look. A blob that is written
under its final name changes a stamp when it is created, and none when it grows. So everything is read again at each
look until the last change of a blob was some seconds ago, and when a blob turns out to be another than in the index.

Names are in the annotations of index.json's entries. containerd writes the full name to io.containerd.image.name. Other
tools write it to org.opencontainers.image.ref.name, or only the tag, which is no full name. An entry without a full
name is served by digest, because it was put here on purpose and has no name to filter.

Tools that write a layout by containerd's content library have their downloads in ``ingest/`` beside ``blobs/``, in the
form of :mod:`spegel_consul.store.containerd.ingests`; their refs begin with :data:`NAMESPACE`. Peers can follow them.

A new rule about the files of a layout belongs here; the rule which content is served belongs to
:mod:`spegel_consul.store.index`.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk import foreign_files
from spegel_consul.error_words import in_words
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown, DigestInvalid
from spegel_consul.oci.media import OCI_MANIFEST, entries, header_safe
from spegel_consul.oci.reference import Reference
from spegel_consul.store import Blob, Downloads
from spegel_consul.store.blob_files import absent, blob_file, blob_path, open_file
from spegel_consul.store.containerd.ingests import Ingests
from spegel_consul.store.documents import read_documents
from spegel_consul.store.index import Content, ImageRecord, Snapshot, everything
from spegel_consul.store.indexed_store import IndexedStore
from spegel_consul.zerocopy.growing_file import GrowingFile

log = structlog.get_logger(__name__)

NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
"""Annotations with names, the preferred one first."""

NAMESPACE = "layout"
"""The first part of the refs of downloads that may be shown."""

MAX_INDEX_SIZE = 32 << 20
"""Size limit of index.json, in bytes."""

_READ_AGAIN = 30.0  # seconds after which files that could not be read are tried again
_WRITTEN_WITHIN = 10.0  # seconds since the last change of a blob after which it is not written any more
_LOOK_WITHIN = 60.0  # seconds; a hard disk lists a hundred thousand blobs in less

Stamp = tuple[tuple[int, int, int], ...]


class LayoutInvalid(ValueError):
    """index.json is invalid, or not yet complete; the message says why."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Result of a look at the directory; ``snapshot`` is None if nothing has changed.

    ``is_written``: whether a blob may still be being written.
    """

    stamp: Stamp
    snapshot: Snapshot | None
    is_written: bool = False


class LayoutStore(IndexedStore):
    """Images in the layout at ``path``, which is checked every ``interval`` seconds."""

    def __init__(self, path: Path, accept: Callable[[str], bool] = everything, *, interval: float = 1.0) -> None:
        super().__init__(accept)
        self._path = path
        self._interval = interval
        self._limiter = trio.CapacityLimiter(32)
        self._calls = foreign_files.FileCalls(_LOOK_WITHIN)
        self._stamp: Stamp | None = None
        self._problem = f"image layout {path} has not been read yet"
        self._in_trouble = False
        self._missed = False  # whether index.json was missing at the last look
        self._unread = 0  # files that could not be read
        self._read_again_at = math.inf
        self._ingests = Ingests(lambda: path, NAMESPACE, lambda digest: None)

    def file(self, digest: Digest) -> str | None:
        return blob_file(self._path, digest)

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        return None if self._index.refuses(digest) else await self._ingests.open(digest)

    async def downloads(self) -> Downloads:
        return await self._ingests.downloads(self._index.refuses)

    async def at_work(self) -> int | None:
        return await self._ingests.at_work()

    def is_idle(self) -> bool:
        return self._ingests.is_idle()

    @asynccontextmanager
    async def open(self, digest: Digest) -> AsyncIterator[Blob]:
        await trio.lowlevel.checkpoint()
        descriptor = self._wanted(digest)
        try:
            blob = await open_file(blob_path(self._path / "blobs", digest), descriptor, self._limiter)
        except FileNotFoundError:
            self._forget(digest)
            self._read_again_at = -math.inf  # the file may have grown since it was listed
            raise absent(digest) from None
        except OSError as exc:
            raise BlobUnknown(f"blob {digest} can't be read: {in_words(exc)}", {"digest": digest}) from exc
        try:
            yield blob
        finally:
            blob.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._look()
        task_status.started()
        while True:
            await trio.sleep(self._interval)
            await self._look()

    async def _look(self) -> None:
        again = trio.current_time() >= self._read_again_at
        known = None if again else self._stamp
        missed, self._missed = self._missed, False
        try:
            seen = await self._calls.run(partial(look, self._path, known))
            if seen.snapshot is not None:
                await self._take(seen.snapshot)
                if seen.is_written:
                    self._read_again_at = -math.inf
        except FileNotFoundError:
            if self._stamp is not None and not missed:
                self._missed = True  # some writers remove index.json before they write the new one
                return
            self._empty()
            self._trouble(f"image layout {self._path} does not exist: make it (index.json and blobs), or mount it")
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                self._empty()  # the target of a symbolic link must not be served
            self._stamp = None
            self._trouble(f"image layout {self._path} can't be read: {in_words(exc)}")
        except LayoutInvalid as exc:
            # the last valid snapshot and its stamp stay, so that the next look tries again
            self._trouble(f"index.json of image layout {self._path} is not valid: {exc}", keeps=self._stamp is not None)
        else:
            self._stamp = seen.stamp
            # a file may be gone again, or not be written yet, so a failure counts when it is repeated
            if self._unread and not seen.is_written and (again or self._in_trouble):
                self._trouble(f"{self._unread} files of {self._path} can't be read: check their owners", keeps=True)
                return
            if self._in_trouble:
                log.info("image layout is readable again", path=str(self._path))
            self._in_trouble = False
            self._problem = None

    async def _take(self, snapshot: Snapshot) -> None:
        self._apply(snapshot)
        self._unread, self._read_again_at = 0, math.inf
        while unread := self._index.unread():
            documents = await read_documents(self._path / "blobs", unread, self._limiter)
            for content in unread:
                if content.digest in documents:
                    self._learn(content.digest, documents[content.digest])
                else:
                    self._unread += 1
                    self._index.drop_content(content.digest)
        if self._unread:
            self._read_again_at = min(self._read_again_at, trio.current_time() + _READ_AGAIN)
        changed = self._publish()
        log.debug("image layout read", path=str(self._path), added=len(changed.added), removed=len(changed.removed))

    def _empty(self) -> None:
        self._stamp = None
        self._index.apply(Snapshot())  # the tags' times stay, because the layout may only be out of sight
        self._publish()

    def _trouble(self, reason: str, *, keeps: bool = False) -> None:
        """Log a problem once. With ``keeps``, the last valid index is in force, and the store has no problem."""
        if not self._in_trouble:
            log.warning("image layout", reason=reason)
        self._in_trouble = True
        self._problem = None if keeps else reason


def look(path: Path, known: Stamp | None) -> _Seen:
    """Read the layout at ``path`` unless its stamp is ``known``. Raises OSError or LayoutInvalid."""
    stamp = _stamp(path)
    if stamp == known:
        return _Seen(stamp, None)
    body = foreign_files.read(path / "index.json", MAX_INDEX_SIZE, follow=False)
    records = tuple(_dated(path / "blobs", record) for record in images(body))
    files = tuple(_files(path / "blobs"))
    contents = tuple(Content(digest, status.st_size) for digest, status in files)
    now = time.time()
    # not the time of modification, because programs can set it (cp -p, rsync -t)
    is_written = any(abs(now - status.st_ctime) < _WRITTEN_WITHIN for _, status in files)
    return _Seen(stamp, Snapshot(records, contents), is_written)


def images(index: bytes) -> Iterator[ImageRecord]:
    """The images that an index.json lists, without invalid entries. Raises LayoutInvalid."""
    try:
        document = json.loads(index)
    except (ValueError, RecursionError) as exc:
        raise LayoutInvalid(str(exc)) from None
    listed = entries(document, "manifests") if isinstance(document, dict) else None
    if listed is None:
        raise LayoutInvalid("it has no list of manifests")
    for entry in listed:
        if isinstance(entry, dict) and (record := _image(entry)) is not None:
            yield record


def _dated(blobs: Path, record: ImageRecord) -> ImageRecord:
    """Return the record with a time: a layout has none for a name, and the manifest was written just before it."""
    try:
        return replace(record, updated_at=blob_path(blobs, record.target.digest).lstat().st_mtime)
    except OSError:
        return record


def _image(entry: dict[str, object]) -> ImageRecord | None:
    digest, size, media_type = entry.get("digest"), entry.get("size"), entry.get("mediaType")
    try:
        checked = Digest(str(digest))
    except DigestInvalid as exc:
        log.warning("entry of image layout ignored", reason=str(exc))
        return None
    target = Descriptor(
        checked,
        size if isinstance(size, int) else 0,
        header_safe(media_type) if isinstance(media_type, str) and media_type else OCI_MANIFEST,
    )
    annotations = entry.get("annotations")
    if isinstance(annotations, dict):
        for annotation in NAME_ANNOTATIONS:
            name = annotations.get(annotation)
            if isinstance(name, str) and Reference.parse_full(name) is not None:
                return ImageRecord(name, target)
    return ImageRecord(checked, target)


def _stamp(path: Path) -> Stamp:
    status = (path / "index.json").lstat()
    stamps = [(status.st_mtime_ns, status.st_size, status.st_ino)]
    blobs = path / "blobs"
    # a directory's time of modification changes when a name is added or removed
    for directory in _directories(blobs):
        status = directory.stat()
        stamps.append((status.st_mtime_ns, 0, status.st_ino))
    return tuple(stamps)


def _directories(blobs: Path) -> list[Path]:
    """The blob directories. Raises OSError for a symbolic link, because a layout must not publish other directories."""
    for path in (blobs, *(found := sorted(blobs.iterdir()) if blobs.is_dir() else [])):
        if path.is_symlink():
            raise OSError(errno.ELOOP, f"{path} is a symbolic link: put the files themselves there", str(path))
    return [path for path in found if path.is_dir()]


def _files(blobs: Path) -> Iterator[tuple[Digest, os.stat_result]]:
    for algorithm in _directories(blobs):
        with os.scandir(algorithm) as entries:
            for entry in entries:
                try:
                    digest, status = Digest(f"{algorithm.name}:{entry.name}"), entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        yield digest, status
                except (DigestInvalid, OSError):
                    continue
