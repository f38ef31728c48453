"""Reads manifests from a ``blobs`` directory, a batch of them for each use of a thread.

A new rule about reading manifests from files belongs here; parsing is in :mod:`spegel_consul.store.manifest_walk`.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import structlog
import trio

from spegel_consul.disk.threads import in_thread
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import MAX_MANIFEST_SIZE
from spegel_consul.store.blob_files import blob_path, open_blob
from spegel_consul.store.index import Content
from spegel_consul.store.manifest_walk import Document, ManifestInvalid, parse

log = structlog.get_logger(__name__)

BATCH = 64
"""Number of manifests that a thread reads at once; small, so that a cancelled task waits only for milliseconds."""

WITHIN = 30.0
"""Seconds that a batch may take."""


def document_of(digest: Digest, body: bytes) -> Document | None:
    """Return the parsed manifest, or None if ``body`` is none."""
    try:
        return parse(body)
    except ManifestInvalid as exc:
        log.debug("not a manifest", digest=digest, reason=str(exc))
        return None


async def read_documents(
    blobs: Path, contents: Sequence[Content], limiter: trio.CapacityLimiter
) -> dict[Digest, Document | None]:
    """Read and parse ``contents`` below ``blobs``.

    The result has None for content that is no manifest, and no entry for content that can't be read. Raises
    TimeoutError if the disk does not answer.
    """
    found: dict[Digest, Document | None] = {}
    rest = iter(contents)
    while batch := tuple(islice(rest, BATCH)):
        with trio.move_on_after(WITHIN) as limit:
            found.update(await in_thread(partial(_read, blobs, batch), limiter))
        if limit.cancelled_caught:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer within {WITHIN:g} s: check the disk", str(blobs))
    return found


def _read(blobs: Path, batch: Sequence[Content]) -> dict[Digest, Document | None]:
    found: dict[Digest, Document | None] = {}
    for content in batch:
        try:
            with open(open_blob(blob_path(blobs, content.digest), content.size), "rb") as file:  # noqa: PTH123
                # the first byte tells layers from manifests, because nothing else gives the type of loose content
                body = file.read(1)
                if body.strip() == b"{" or not body.strip():
                    body += file.read(MAX_MANIFEST_SIZE)
                else:
                    found[content.digest] = None
                    continue
        except OSError:
            continue
        if len(body) == content.size:
            found[content.digest] = document_of(content.digest, body)
    return found
