from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from conformance.downloads import BODY, MIB, Downloads, DownloadSuite, content
from fakes.content_store import FakeContentStore, FakeIngest
from fakes.memory_store import MemoryStore
from structlog.testing import capture_logs

from spegel_consul.disk import foreign_files
from spegel_consul.oci.descriptor import Descriptor
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Store
from spegel_consul.store.containerd import ingests
from spegel_consul.store.containerd.awaited_content import PAUSES, AwaitedContent
from spegel_consul.store.containerd.containerd_store import ContainerdStore
from spegel_consul.store.containerd.conversion import ContentChanged
from spegel_consul.store.containerd.ingests import Ingests
from spegel_consul.store.index import Content, ImageRecord, Index
from spegel_consul.store.union import UnionStore
from spegel_consul.zerocopy.growing_file import GrowingFile

NOWHERE = Path("/nonexistent/containerd.sock")


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


class Observed:
    """Ingests of a directory, the digests that are gone, and the number of looks."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.content = FakeContentStore(root)
        self.gone: list[Digest] = []
        self.looks = 0
        self.hangs: threading.Event | None = None
        self.ingests = Ingests(lambda: root, "k8s.io", self.gone.append)
        directory = self.ingests._directory
        look = directory.look

        def counted(root: Path) -> ingests.Look:
            self.looks += 1
            if self.hangs is not None:
                self.hangs.wait(60)
            return look(root)

        monkeypatch.setattr(directory, "look", counted)


@pytest.fixture
def observed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observed:
    return Observed(tmp_path / "content", monkeypatch)


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


async def test_callers_share_a_look(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    bodies = [f"body {number}".encode() for number in range(500)]
    digests = [observed.content.begin(body).digest for body in bodies]
    absent = Digest.of(b"absent")

    async def ask(digests: Sequence[Digest]) -> None:
        async with trio.open_nursery() as nursery:
            for digest in digests:
                nursery.start_soon(_open_and_close, observed.ingests, digest)
                nursery.start_soon(observed.ingests.at_work)

    await ask([*digests[:50], absent])
    first = observed.looks
    assert first <= 3, "those that wait for a look take the same next one"
    await ask([*digests[:50], absent])
    assert observed.looks == first, "asked again within 50 ms"
    mock_clock.jump(ingests.SHARED * 1.01)
    await ask([*digests[:50], absent])
    assert observed.looks == first + 1
    late = observed.content.begin(b"a moment ago")
    mock_clock.jump(0.001)
    file = await observed.ingests.open(late.digest)
    assert file is not None, "a digest that nobody has asked for gets a look of its own"
    file.close()
    assert observed.looks == first + 2


async def _open_and_close(found: Ingests, digest: Digest) -> None:
    file = await found.open(digest)
    if file is not None:
        file.close()


async def test_refs_are_read_once(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = ingests.IngestDirectory("k8s.io")
    for number in range(500):
        observed.content.begin(b"%d" % number, namespace="k8s.io" if number % 2 else "moby")
    assert len(directory.look(observed.content.root).names) == 250
    read: list[object] = []
    monkeypatch.setattr(ingests.foreign_files, "read", lambda *arguments, **_: read.append(arguments) or b"")
    assert len(directory.look(observed.content.root).names) == 250
    assert not read
    monkeypatch.undo()
    late = observed.content.begin(b"late")
    ref = (late.path / "ref").read_bytes()
    (late.path / "ref").write_bytes(b"")
    assert late.digest not in directory.look(observed.content.root).names
    (late.path / "ref").write_bytes(ref)
    assert late.digest in directory.look(observed.content.root).names, "an empty ref is one that is being written"


async def test_a_disk_that_hangs_costs_one_thread(observed: Observed, mock_clock: trio.testing.MockClock) -> None:
    ingest = observed.content.begin(BODY)
    assert await observed.ingests.at_work() == 0
    observed.hangs = threading.Event()
    mock_clock.jump(1)
    answers: list[object] = []

    async def ask() -> None:
        answers.append(await observed.ingests.open(ingest.digest))
        answers.append(await observed.ingests.at_work())

    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not answers
            mock_clock.jump(ingests.WITHIN)
        assert sorted(map(str, answers)) == ["0"] * 20 + ["None"] * 20
        await ask()
    assert observed.looks == 2, "one thread hangs, and the others are told at once"
    assert len([entry for entry in logs if entry["log_level"] == "warning"]) == 1
    observed.hangs.set()
    observed.hangs = None
    for _ in range(1000):
        if (file := await observed.ingests.open(ingest.digest)) is not None:
            file.close()
            return
        await trio.testing.wait_all_tasks_blocked(0.01)
    pytest.fail("the disk is back, and its downloads are not")


async def test_a_directory_that_is_not_there_has_no_downloads(tmp_path: Path) -> None:
    with capture_logs() as logs:
        for root in (tmp_path / "absent", None):
            found = Ingests(lambda root=root: root, "k8s.io", lambda digest: None)
            assert await found.at_work() is None
            assert await found.open(Digest.of(b"x")) is None
    assert not logs


async def test_a_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "ingest").write_text("")
    found = Ingests(lambda: tmp_path, "k8s.io", lambda digest: None)
    with capture_logs() as logs:
        for _ in range(3):
            assert await found.open(Digest.of(b"x")) is None
    (warning,) = logs
    assert "downloads can't be read" in warning["event"]


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


async def test_content_that_this_namespace_had_and_deleted_is_not_shown(tmp_path: Path) -> None:
    """The file may still be there, because another namespace has the same content."""
    store = ContainerdStore(lambda: NOWHERE, "k8s.io", tmp_path / "content")
    ingest = FakeContentStore(tmp_path / "content").begin(BODY)
    (await _found(store, ingest.digest)).close()
    await ingest.commit()
    await trio.sleep(2 * ingests.SHARED)
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
