"""Access to the bytes of containerd's content: from its directory, or through gRPC.

The file in containerd's content directory is more than ten times as fast, can be sent by the kernel, and works while
containerd is away.  Content.Read works if the directory is not mounted or not readable.  The way is chosen anew for
each blob, because directories appear and mounts are repaired.

Only blobs/<algorithm>/<hex> is opened here; downloads in progress are in ingest/, which
:mod:`spegel_consul.store.containerd.ingests` reads.  A new way to the bytes belongs here.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from spegel_consul.disk.threads import in_thread
from spegel_consul.error_words import in_words
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.oci.media import MAX_MANIFEST_SIZE
from spegel_consul.store.blob_files import Damaged, FileBlob, absent, blob_path, open_file
from spegel_consul.store.containerd.grpc_calls import ContainerdUnavailable, ContentStream
from spegel_consul.store.containerd.grpc_client import ContainerdClient
from spegel_consul.store.documents import document_of, read_documents
from spegel_consul.store.index import Content
from spegel_consul.store.manifest_walk import Document

log = structlog.get_logger(__name__)

_FETCH_WITHIN = 30.0  # seconds


class Unreadable(BlobUnknown):
    """The content may well be there, but can't be read now: containerd is away, or the bytes are wrong."""


class Reader:
    """Reads content of one containerd. ``directory`` and ``client`` are set when they are known, else None.

    ``directory`` is the root of the content store, which has ``blobs`` in it.
    """

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.client: ContainerdClient | None = None
        self._limiter = trio.CapacityLimiter(32)
        self._said_slow = False

    async def open(self, descriptor: Descriptor) -> FileBlob | RemoteBlob:
        """Open content; the caller closes it. Raises BlobUnknown if it is gone, Unreadable if nobody can tell."""
        digest = descriptor.digest
        file_is_missing = False
        if self.directory is not None:
            try:
                return await open_file(blob_path(self.directory / "blobs", digest), descriptor, self._limiter)
            except FileNotFoundError:
                file_is_missing = True
            except Damaged as exc:  # containerd would send the same bytes, and nobody would verify them
                log.debug("damaged content", reason=in_words(exc))
                raise Unreadable(f"blob {digest} is damaged or not written yet", {"digest": digest}) from None
            except OSError as exc:
                self._say_slow(in_words(exc))
        # containerd has the last word: the directory may be another one, or out of sight
        if self.client is not None:
            try:
                if not await self.client.find([digest]):
                    raise absent(digest)
            except ContainerdUnavailable:
                pass
            else:
                self._say_slow("a blob that containerd has is not there")
                return RemoteBlob(self.client, descriptor)
        if file_is_missing and await self._has_blobs():
            raise absent(digest)
        raise Unreadable(f"blob {digest} can't be read: containerd is away", {"digest": digest})

    async def documents(self, contents: Sequence[Content]) -> dict[Digest, Document | None]:
        """Parse manifests; None for what is none. What is gone is missing from the answer.

        Raises ContainerdUnavailable.
        """
        found: dict[Digest, Document | None] = {}
        if self.directory is not None:
            try:
                found = await read_documents(self.directory / "blobs", contents, self._limiter)
            except TimeoutError as exc:
                raise ContainerdUnavailable(in_words(exc)) from None
        missing = [content for content in contents if content.digest not in found]
        if missing and self.client is None:
            raise ContainerdUnavailable("not connected to containerd")
        for content in missing:
            body = await self._fetch(self.client, content) if self.client else None
            if body is not None:
                found[content.digest] = document_of(content.digest, body)
                self._say_slow("a manifest that containerd has is not there")
        return found

    async def _has_blobs(self) -> bool:
        return self.directory is not None and await in_thread(
            partial(os.path.isdir, self.directory / "blobs"), self._limiter
        )

    async def _fetch(self, client: ContainerdClient, content: Content) -> bytes | None:
        """A manifest's bytes, as many as tell that it is none, or None if the content is gone."""
        body = bytearray()
        try:
            with trio.fail_after(_FETCH_WITHIN):
                async with client.read(content.digest, 0, min(content.size, MAX_MANIFEST_SIZE)) as pieces:
                    async for piece in pieces:
                        body += piece
                        if not body.lstrip().startswith(b"{"):
                            break
        except BlobUnknown:
            return None
        except trio.TooSlowError:
            raise ContainerdUnavailable(f"it did not send a manifest within {_FETCH_WITHIN:g} s") from None
        return bytes(body)

    def _say_slow(self, reason: str) -> None:
        if not self._said_slow:
            self._said_slow = True
            log.warning(
                "content directory can't be read, so blobs go through containerd, which is slower:"
                " mount the directory read-only, or set the content path",
                directory=str(self.directory),
                reason=reason,
            )


class RemoteBlob:
    """A blob that is read through gRPC. close() ends what is still being read."""

    def __init__(self, client: ContainerdClient, descriptor: Descriptor) -> None:
        self._client = client
        self._descriptor = descriptor
        self._streams: list[ContentStream] = []

    def fileno(self) -> int | None:
        return None

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        stream = self._client.read(self._descriptor.digest, start, min(stop, self._descriptor.size))
        self._streams.append(stream)
        return _RemoteChunks(stream, self._descriptor.digest)

    def close(self) -> None:
        for stream in self._streams:
            stream.cancel()


class _RemoteChunks:
    """The pieces of a stream that its blob closes."""

    def __init__(self, stream: ContentStream, digest: Digest) -> None:
        self._stream = stream
        self._digest = digest

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._stream.__anext__()
        except ContainerdUnavailable as exc:
            raise absent(self._digest) from exc
