"""Content that is refused, deleted or awaited, and what the index says of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

import pytest
from conformance.downloads import BODY
from fakes.content_store import FakeContentStore
from fakes.memory_store import MemoryStore

from spegel_consul.disk import foreign_files
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store
from spegel_consul.store.containerd import ingests
from spegel_consul.store.containerd.awaited_content import PAUSES, AwaitedContent
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.store.containerd.conversion import ContentChanged
from spegel_consul.store.index import Content, ImageRecord, Index
from spegel_consul.store.union import UnionStore
from spegel_consul.zerocopy.growing_file import GrowingFile
from tests.store.observed_ingests import NOWHERE, Observed, observed

__all__ = ["observed"]


async def test_content_of_refused_images_is_not_shown(tmp_path: Path) -> None:
    store = ContainerdStore(lambda: NOWHERE, "k8s.io", tmp_path / "content", lambda name: not name.startswith("secret"))
    ingest = FakeContentStore(tmp_path / "content").begin(BODY)
    (await _found(store, ingest.digest)).close()
    await ingest.commit()
    (await _found(store, ingest.digest)).close()
    store._index.put_content(Content(ingest.digest, len(BODY), ("secret.example/app",)))
    assert await store.downloading(ingest.digest) is None
    store._index.put_content(Content(ingest.digest, len(BODY), ("docker.io/library/app",)))
    (await _found(store, ingest.digest)).close()


async def test_only_what_the_index_does_not_know_is_expected(tmp_path: Path) -> None:
    store = ContainerdStore(lambda: NOWHERE, "k8s.io", tmp_path / "content", lambda name: not name.startswith("secret"))
    unknown, refused, served = (Digest.of(name) for name in (b"unknown", b"refused", b"served"))
    store._index.put_content(Content(refused, 7, ("secret.example/app",)))
    store._index.put_content(Content(served, 6, ("docker.io/library/app",)))
    store._index.settle()
    union = UnionStore([MemoryStore(), store])
    for digest in (unknown, refused, served):
        union.expect(digest)
    assert [digest in store._awaited for digest in (unknown, refused, served)] == [True, False, False]
    due = store._awaited.next
    store.expect(unknown)
    assert store._awaited.next == due, "a question that is under way goes on"


@pytest.mark.parametrize("call", ["size", "abandoned"])
async def test_a_file_system_that_loses_files_leaves_none_open(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """As a network file system may: the file was opened, and then its state can't be asked."""
    opened: list[int] = []
    real = foreign_files.open_regular

    def open_regular(path: str | Path, *, follow: bool = True) -> int:
        opened.append(real(path, follow=follow))
        return opened[-1]

    def lost(file: GrowingFile) -> int:
        raise OSError(errno.ESTALE, "Stale file handle")

    ingest = observed.content.begin(BODY)
    await ingest.grow(5)
    observed.content.begin(BODY)
    monkeypatch.setattr(foreign_files, "open_regular", open_regular)
    monkeypatch.setattr(GrowingFile, call, lost)
    assert await observed.ingests.open(ingest.digest) is None
    assert opened
    for fd in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


class Containerd:
    """Has ``contents``."""

    def __init__(self, *contents: Content) -> None:
        self.contents = contents

    async def find(self, digests: Collection[Digest]) -> list[Content]:
        return [content for content in self.contents if content.digest in digests]


@pytest.mark.parametrize("shared", [0.0, 3600.0], ids=["the end is seen", "calls share a look before the end"])
async def test_content_that_this_namespace_had_and_deleted_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: float
) -> None:
    """The file may still be there, because another namespace has the same content."""
    monkeypatch.setattr(ingests, "SHARED", shared)
    monkeypatch.setattr(ingests, "_LONGEST_SHARED", shared)
    store = ContainerdStore(lambda: NOWHERE, "k8s.io", tmp_path / "content")
    ingest = FakeContentStore(tmp_path / "content").begin(BODY)
    (await _found(store, ingest.digest)).close()
    await ingest.commit()
    (await _found(store, ingest.digest)).close()
    changed = [ContentChanged(ingest.digest)]
    served = Content(ingest.digest, len(BODY), ("docker.io/library/app",))
    await store._handle(Containerd(served), changed)  # type: ignore[arg-type]
    assert store.describe(ingest.digest) is not None
    await store._handle(Containerd(), changed)  # type: ignore[arg-type]
    assert store.describe(ingest.digest) is None
    assert await store.downloading(ingest.digest) is None


async def _found(store: Store, digest: Digest) -> GrowingFile:
    file = await store.downloading(digest)
    assert file is not None
    return file


def test_what_the_index_refuses() -> None:
    index = Index(lambda name: name.startswith("docker.io/"))
    stray, refused, served, held = (Digest.of(name) for name in (b"stray", b"refused", b"served", b"held"))
    index.put_content(Content(stray, 5))
    index.put_content(Content(refused, 7, ("ghcr.io/team/app",)))
    index.put_content(Content(served, 6, ("docker.io/library/app",)))
    index.put_content(Content(held, 4))
    index.put_image(ImageRecord("ghcr.io/team/app:v1", Descriptor(held, 4, "text/plain")))
    index.unread()
    found = [index.refuses(digest) for digest in (stray, refused, served, held, Digest.of(b"absent"))]
    assert found == [False, True, False, True, False]


class TestAwaitedContent:
    DIGEST = Digest.of(b"awaited")

    def test_it_is_asked_for_with_growing_pauses_and_given_up(self) -> None:
        awaited = AwaitedContent()
        assert awaited.next == float("inf")
        awaited.add(self.DIGEST, 10.0)
        now = 10.0
        for pause in PAUSES:
            assert awaited.due(now) == {self.DIGEST}
            assert not awaited.answered(self.DIGEST, False, now)
            assert awaited.next == now + pause
            assert awaited.due(now) == frozenset()
            now += pause
        assert awaited.answered(self.DIGEST, False, now)
        assert self.DIGEST not in awaited
        assert awaited.next == float("inf")

    def test_it_is_known_when_it_is_served(self) -> None:
        awaited = AwaitedContent()
        awaited.add(self.DIGEST, 10.0)
        assert self.DIGEST in awaited
        assert not awaited.answered(self.DIGEST, True, 10.0)
        assert self.DIGEST not in awaited
