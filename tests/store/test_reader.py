"""The ways to the bytes of containerd's content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.errors import BlobUnknown
from spegel_consul.store.blob_files import blob_path
from spegel_consul.store.containerd.reader import Reader, Unreadable


class Client:
    """A containerd that has everything, and would send what is on the disk."""

    async def find(self, digests: Sequence[Digest]) -> Sequence[Digest]:
        return digests

    def read(self, *_: object) -> None:
        raise AssertionError("containerd does not verify what it sends")


async def test_small_content_with_wrong_bytes_is_not_sent_by_the_other_way(tmp_path: Path) -> None:
    content = b'{"schemaVersion":2}'
    digest = Digest.of(content)
    path = blob_path(tmp_path / "blobs", digest)
    path.parent.mkdir(parents=True)
    reader = Reader()
    reader.directory, reader.client = tmp_path, Client()  # type: ignore[assignment]
    path.write_bytes(bytes(len(content)))  # as after a loss of power
    with pytest.raises(Unreadable, match="damaged"):
        await reader.open(Descriptor(digest, len(content), "x/y"))
    path.write_bytes(content)
    blob = await reader.open(Descriptor(digest, len(content), "x/y"))
    assert [piece async for piece in blob.chunks(0, len(content))] == [content]
    blob.close()
    path.unlink()
    with pytest.raises((BlobUnknown, AssertionError)):
        (await reader.open(Descriptor(digest, len(content), "x/y"))).chunks(0, 1)
