"""Ingests of containerd: which are shown as growing content, and until when."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from conformance.downloads import BODY, MIB, Downloads, DownloadSuite, content
from fakes.content_store import FakeContentStore, FakeIngest
from fakes.memory_store import MemoryStore
from lab.process import HANG

from spegel_consul.disk import foreign_files
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store
from spegel_consul.store.containerd import ingests
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.store.union import UnionStore
from tests.store.observed_ingests import NOWHERE, Observed, observed

__all__ = ["observed"]


class FileDownloads:
    """A content directory, and a store that looks at it while its containerd is away."""

    def __init__(self, root: Path, make: Callable[[Path], Store]) -> None:
        self.content = FakeContentStore(root)
        self.store = make(root)

    async def begin(self, body: bytes) -> FakeIngest:
        return self.content.begin(body)


def containerd_store(root: Path, namespace: str = "k8s.io") -> ContainerdStore:
    return ContainerdStore(lambda: NOWHERE, namespace, root)


class TestContainerdDownloads(DownloadSuite):
    @pytest.fixture
    def downloads(self, tmp_path: Path) -> Downloads:
        return FileDownloads(tmp_path / "content", containerd_store)


class TestUnionDownloads(DownloadSuite):
    @pytest.fixture
    def downloads(self, tmp_path: Path) -> Downloads:
        def union(root: Path) -> Store:
            return UnionStore([MemoryStore(), containerd_store(root, "moby"), containerd_store(root)])

        return FileDownloads(tmp_path / "content", union)


@pytest.mark.parametrize("total", [None, b"", b"-5", b"0", b"12x", b"\xff", b"9" * 40, b"1048575", b"1048577\n"])
async def test_a_total_that_says_nothing_is_not_known(observed: Observed, total: bytes | None) -> None:
    ingest = FakeIngest(observed.content, BODY, f"k8s.io/1/layer-{Digest.of(BODY)}".encode(), total)
    await ingest.grow(MIB)
    file = await observed.ingests.open(ingest.digest)
    assert file is not None
    with file:
        assert (file.total, file.complete, content(file)) == (None, False, BODY[:MIB])
        await ingest.abort()
        assert file.abandoned()


async def test_a_commit_between_two_steps_of_opening(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = observed.content.begin(BODY)
    total = ingests._total

    def committed_before(path: str, size: int) -> int | None:
        trio.from_thread.run(ingest.commit)
        return total(path, size)

    monkeypatch.setattr(ingests, "_total", committed_before)
    file = await observed.ingests.open(ingest.digest)
    assert file is not None
    with file:
        assert (file.total, file.complete, content(file)) == (len(BODY), True, BODY)


REFS: dict[str, Callable[[Digest], bytes]] = {
    "another namespace": lambda digest: f"moby/1/layer-{digest}".encode(),
    "a longer namespace": lambda digest: f"k8s.io.evil/1/layer-{digest}".encode(),
    "a namespace that a dot would match": lambda digest: f"k8s-io/1/layer-{digest}".encode(),
    "a namespace in front": lambda digest: f"moby/k8s.io/1/layer-{digest}".encode(),
    "another digest before it": lambda digest: f"k8s.io/1/layer-{Digest.of(b'x')}/layer-{digest}".encode(),
    "a newline": lambda digest: f"k8s.io/1/layer-{digest}\n".encode(),
    "a newline in between": lambda digest: f"moby/1/x\nk8s.io/1/layer-{digest}".encode(),
    "more behind it": lambda digest: f"k8s.io/1/layer-{digest}0".encode(),
    "not UTF-8": lambda digest: f"k8s.io/1/layer-{digest}".encode() + b"\xff",
    "capitals": lambda digest: f"k8s.io/1/layer-{digest.upper()}".encode(),
    "no number": lambda digest: f"k8s.io/x/layer-{digest}".encode(),
    "digits of another script": lambda digest: f"k8s.io/\u0661/layer-{digest}".encode(),
    "no kind": lambda digest: f"k8s.io/1/-{digest}".encode(),
    "only a digest": lambda digest: digest.encode(),
    "nothing": lambda digest: b"",
    "a MiB": lambda digest: f"k8s.io/1/{'x' * MIB}-{digest}".encode(),
    "a zero byte": lambda digest: f"k8s.io/1/layer-{digest}\0".encode(),
}


@pytest.mark.parametrize("ref", REFS.values(), ids=REFS)
async def test_a_ref_that_is_not_exactly_one_is_left_out(observed: Observed, ref: Callable[[Digest], bytes]) -> None:
    ingest = FakeIngest(observed.content, BODY, ref(Digest.of(BODY)), b"5")
    await ingest.grow(MIB)
    other = observed.content.begin(b"other")
    await other.grow(2)
    assert await observed.ingests.open(ingest.digest) is None
    assert await observed.ingests.at_work() == 2, "the others are seen"
    await ingest.commit()
    assert await observed.ingests.open(ingest.digest) is None, "its blob is another namespace's"


def a_fifo(path: Path, target: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def a_directory(path: Path, target: Path) -> None:
    path.mkdir()


def a_socket(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        os.chdir(path.parent)  # a socket's path is short
        sock.bind(path.name)


@pytest.mark.parametrize("put", [a_fifo, a_link, a_directory, a_socket])
@pytest.mark.parametrize("name", ["ref", "total", "data"])
async def test_only_regular_files_are_opened(
    observed: Observed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    put: Callable[[Path, Path], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    ingest = observed.content.begin(BODY)
    moved = (ingest.path / name).rename(tmp_path / "moved")
    put(ingest.path / name, moved)
    with trio.fail_after(10):
        file = await observed.ingests.open(ingest.digest)
        await observed.ingests.at_work()
    if name != "total":
        assert file is None
        return
    assert file is not None
    with file:
        assert file.total is None


async def test_a_link_to_an_ingest_is_none(observed: Observed, tmp_path: Path) -> None:
    ingest = observed.content.begin(BODY)
    moved = ingest.path.rename(tmp_path / "moved")
    ingest.path.symlink_to(moved)
    assert await observed.ingests.open(ingest.digest) is None
    assert await observed.ingests.at_work() is None


async def test_a_link_in_place_of_the_blob_is_none(observed: Observed, tmp_path: Path) -> None:
    ingest = observed.content.begin(BODY)
    assert await observed.ingests.at_work() == 0
    await ingest.commit()
    blob = observed.content.blob(ingest.digest)
    blob.symlink_to(blob.rename(tmp_path / "moved"))
    assert await observed.ingests.open(ingest.digest) is None


async def test_blobs_that_were_no_ingest_here_are_not_shown(observed: Observed) -> None:
    """They may be another namespace's, also while this one begins to download the same."""
    foreign = observed.content.begin(BODY, namespace="moby")
    assert await observed.ingests.at_work() is None
    await foreign.commit()
    assert await observed.ingests.open(foreign.digest) is None
    own = observed.content.begin(BODY, total=None)
    await trio.sleep(2 * ingests.SHARED)
    file = await observed.ingests.open(own.digest)
    assert file is not None
    with file:
        assert (file.size(), file.complete) == (0, False)
    (own.path / "data").unlink()
    await trio.sleep(2 * ingests.SHARED)
    assert await observed.ingests.open(own.digest) is None


async def test_a_blob_is_shown_for_a_while_and_until_it_is_forgotten(
    observed: Observed, mock_clock: trio.testing.MockClock
) -> None:
    ingest = observed.content.begin(BODY)
    assert await observed.ingests.at_work() == 0
    await ingest.commit()
    mock_clock.jump(ingests.SEEN_FOR - 1)
    file = await observed.ingests.open(ingest.digest)
    assert file is not None
    file.close()
    observed.ingests.forget(ingest.digest)
    assert await observed.ingests.open(ingest.digest) is None
    again = observed.content.begin(b"again")
    mock_clock.jump(1)
    assert await observed.ingests.at_work() == 0
    await again.commit()
    mock_clock.jump(ingests.SEEN_FOR + 1)
    assert await observed.ingests.open(again.digest) is None


async def test_what_is_over_is_forgotten(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    for number in range(40):
        ingest = observed.content.begin(b"%d" % number)
        assert await observed.ingests.open(Digest.of(b"absent %d" % number)) is None
        await ingest.abort()
        mock_clock.jump(ingests.SEEN_FOR / 8)
    assert len(observed.ingests._seen) <= 10
    assert len(observed.ingests._asked) <= 2


async def test_the_end_of_a_download_is_told_once(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    committed, aborted, goes_on = map(observed.content.begin, (b"one", b"two", b"three"))
    assert await observed.ingests.at_work() == 0
    await committed.commit()
    await aborted.abort()
    for _ in range(2):
        mock_clock.jump(1)
        assert await observed.ingests.at_work() == 0
        assert sorted(observed.gone) == sorted([committed.digest, aborted.digest])
    assert await observed.ingests.open(aborted.digest) is None
    await goes_on.abort()


async def test_the_longest_of_several_is_taken(observed: Observed) -> None:
    sizes = (MIB, 2 * MIB, 5)
    for size, kind in zip(sizes, ("layer", "config", "unknown"), strict=True):
        await observed.content.begin(BODY, kind=kind).grow(size)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    file = await observed.ingests.open(Digest.of(BODY))
    assert file is not None
    assert file.size() == 2 * MIB
    file.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert await observed.ingests.at_work() == sum(sizes)


async def test_of_too_many_ingests_the_newest_are_seen(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingests, "_MOST", 20)
    for number in range(60):
        stale = observed.content.begin(f"stale {number}".encode())
        os.utime(stale.path, (1_000_000, 1_000_000 + number))
    new = [observed.content.begin(f"new {number}".encode()) for number in range(10)]
    for each in new:
        file = await observed.ingests.open(each.digest)
        assert file is not None
        file.close()
    assert len(observed.ingests._last.names) == 20


async def test_all_downloads_are_told_by_one_look(observed: Observed) -> None:
    bodies = [f"body {number}".encode() * 100 for number in range(60)]
    begun = [observed.content.begin(body) for body in bodies]
    for number, each in enumerate(begun):
        await each.grow(number)
    await observed.content.begin(bodies[1], kind="config").grow(50)
    downloads = await observed.ingests.downloads()
    assert observed.looks == 1
    assert downloads.growing == {each.digest: 50 if number == 1 else number for number, each in enumerate(begun)}
    assert downloads.ended == frozenset()
    await begun[0].commit()
    await begun[2].abort()
    other = observed.content.begin(b"of another namespace", namespace="moby")
    downloads = await observed.ingests.downloads()
    assert downloads.ended == {begun[0].digest, begun[2].digest}
    assert not {begun[0].digest, begun[2].digest, other.digest} & downloads.growing.keys()
    assert observed.looks == 2


async def test_what_only_refused_images_have_is_not_peeked_at(tmp_path: Path) -> None:
    store = MemoryStore(accept=lambda name: "refused" not in name)
    digest = store.add_image("refused.example/app:v1", b'{"layers": []}')
    (tmp_path / "file").write_bytes(b'{"layers": []}')
    store.file = lambda digest: str(tmp_path / "file")  # type: ignore[method-assign]
    assert store._index.refuses(digest)
    assert await store.peek(digest, MIB) is None
    assert await store.peek(Digest.of(b"unknown to the index"), MIB) is not None


async def test_a_disk_that_hangs_holds_the_first_one_who_peeks_and_nobody_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(foreign_files, "read", lambda *_, **__: goes_on.wait(HANG))
    store = containerd_store(tmp_path)
    took = []
    for _ in range(2):
        began = trio.current_time()
        assert await store.peek(Digest.of(b"manifest"), MIB) is None
        took.append(trio.current_time() - began)
    goes_on.set()
    assert 0.2 < took[0] < 1.0
    assert took[1] < 0.1
