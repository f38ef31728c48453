"""Peers that follow a download of this node's runtime: what they are sent, how long they wait, what ends it.

The downloads are files as containerd writes them. The clock jumps while all tasks wait, so files are read without
threads, which such a clock would overtake.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.disk.foreign_files import FileCalls
from spegel_consul.http.basic_auth import Credentials
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.registry import growing
from spegel_consul.registry.mirror.followers import MOST, MOST_UNASKED, WAIT
from spegel_consul.registry.mirror.own_requests import SHOWN_FOR
from spegel_consul.ring.dht.claims import What
from spegel_consul.store import Downloads
from spegel_consul.store.containerd import ingests as ingests_module
from spegel_consul.store.containerd.ingests import Ingests
from spegel_consul.zerocopy import outlet
from spegel_consul.zerocopy.growing_file import GrowingFile
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL

from .conftest import FileStore, open_files

MIB = 1 << 20
LAYER = os.urandom(3 * MIB + 77)
OTHER = os.urandom(2 * MIB)
MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {"digest": Digest.of(b"{}")}, "layers": []}
).encode()
PEER = "12D3KooWA7WVjnHhTQGvRnKbmNNzYkyuCRfLTzzQ2DYLtZPdcM9s"
T = TypeVar("T")


class Download:
    """An ingest in containerd's content store."""

    def __init__(
        self, root: Path, data: bytes, *, namespace: str = "k8s.io", total: int | None = 0, named: Digest | None = None
    ) -> None:
        self.data, self.digest = data, named or Digest.of(data)
        self._blob = root / "blobs" / "sha256" / self.digest.encoded
        ref = f"{namespace}/1/layer-{self.digest}"
        self._directory = root / "ingest" / hashlib.sha256(ref.encode()).hexdigest()
        self._directory.mkdir(parents=True)
        self._path = self._directory / "data"
        self._path.touch()
        (self._directory / "ref").write_text(ref)
        if total is not None:
            (self._directory / "total").write_text(str(total or len(data)))

    def grow_to(self, size: int) -> None:
        with self._path.open("ab", buffering=0) as file:
            file.write(self.data[file.tell() : size])

    def commit(self) -> None:
        self.grow_to(len(self.data))
        self._blob.parent.mkdir(parents=True, exist_ok=True)
        self._path.rename(self._blob)
        self._clear()

    def abort(self) -> None:
        self._path.unlink()
        self._clear()

    def _clear(self) -> None:
        for path in self._directory.iterdir():
            path.unlink()
        self._directory.rmdir()


class IngestStore(FileStore):
    """A store with a runtime that downloads."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.root = directory / "root"
        self.root.mkdir()
        self._ingests = Ingests(lambda: self.root, "k8s.io", lambda digest: None)
        self.expected: list[Digest] = []
        self.unseen: list[bytes] = []

    def download(self, data: bytes, **options: Any) -> Download:
        return Download(self.root, data, **options)

    async def downloading(self, digest: Digest) -> GrowingFile | None:
        return await self._ingests.open(digest)

    async def downloads(self) -> Downloads:
        return await self._ingests.downloads()

    async def at_work(self) -> int | None:
        return await self._ingests.at_work()

    def expect(self, digest: Digest) -> None:
        """The runtime has what is in :attr:`unseen`."""
        self.expected.append(digest)
        for data in [each for each in self.unseen if Digest.of(each) == digest]:
            self.unseen.remove(data)
            self.add_content(data)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps while all tasks wait overtakes a thread."""

    async def run(_: FileCalls, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return call()

    async def at_once(call: Callable[[], T], _: object = None) -> T:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(FileCalls, "run", run)
    monkeypatch.setattr(ingests_module, "open_in_thread", at_once)
    for module in (growing, outlet):
        monkeypatch.setattr(module, "in_thread", at_once)


class Reply:
    """The answer to one request, read as it comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = b""
        self._taken = 0  # bytes of the body
        self.interim = 0
        self.status = 0
        self.fields: dict[str, str] = {}

    async def head(self) -> int:
        while b"\r\n\r\n" not in self._received:
            data = await self._stream.receive_some(1 << 16)
            assert data, "the connection ended before the head"
            self._received += data
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self._taken = 0
        self.status = int(first.split(" ")[1])
        if self.status == 103:
            self.interim += 1
            return await self.head()
        self.fields = dict(line.lower().split(": ", 1) for line in lines)
        return self.status

    @property
    def length(self) -> int:
        return int(self.fields["content-length"])

    async def read(self, size: int) -> bytes:
        """Read ``size`` bytes, or fewer if the connection ends."""
        with trio.fail_after(60):
            while len(self._received) < size:
                data = await self._some()
                if not data:
                    break
                self._received += data
        found, self._received = self._received[:size], self._received[size:]
        self._taken += len(found)
        return found

    async def rest(self) -> bytes:
        return await self.read(self.length - self._taken)

    async def _some(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(1 << 18))
        except trio.BrokenResourceError:  # a cut may be a reset
            return b""


@asynccontextmanager
async def asked(
    node: Any,
    digest: str,
    *fields: str,
    kind: str = "blobs",
    method: str = "GET",
    ns: str = "docker.io",
    version: str = "1.1",
) -> AsyncIterator[Reply]:
    target = f"/v2/library/app/{kind}/{digest}?ns={ns}"
    lines = (f"{method} {target} HTTP/{version}", "Host: x", *fields, "", "")
    async with await trio.open_tcp_stream(*node.address) as stream:
        await stream.send_all("\r\n".join(lines).encode())
        yield Reply(stream)


def followed(node: Any, digest: str = Digest.of(LAYER), *fields: str, **options: str) -> Any:
    return asked(node, digest, "X-Spegel-Mirrored: true", f"X-Spegel-Follow: {PEER}", *fields, **options)


async def status(reply: Any) -> int:
    async with reply as opened:
        return int(await opened.head())


async def runtime_asks(node: Any, data: bytes = LAYER, **options: str) -> None:
    """Ask the node's mirror as its own runtime does before it goes upstream."""
    assert await status(asked(node, Digest.of(data), **options)) == 404


@pytest.fixture
async def start(start_node: Any, tmp_path: Path) -> Any:
    async def start(**options: Any) -> Any:
        return await start_node(store=IngestStore(tmp_path / "containerd"), keep_alive=10_000, **options)

    return start


@pytest.fixture
async def node(start: Any) -> Any:
    """A node whose runtime has asked for the layer."""
    found = await start()
    await runtime_asks(found)
    return found


def passed(began: float, seconds: float) -> bool:
    return seconds <= trio.current_time() - began < seconds + 0.3


async def test_a_layer_comes_as_it_grows(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    async with followed(node) as reply:
        await trio.sleep(2)
        download.grow_to(MIB)
        assert await reply.head() == 200
        assert reply.length == len(LAYER)
        assert reply.fields["docker-content-digest"] == Digest.of(LAYER)
        assert reply.fields["content-type"] == "application/octet-stream"
        assert await reply.read(MIB) == LAYER[:MIB]
        await trio.sleep(0.1)
        [following] = node.mirror.followers.live()
        assert (following.peer, following.sent, following.total) == (PEER, MIB, len(LAYER))
        for size in (2 * MIB, 3 * MIB):
            await trio.sleep(STALL - 1)
            download.grow_to(size)
            assert await reply.read(MIB) == LAYER[size - MIB : size]
        download.commit()
        assert await reply.rest() == LAYER[3 * MIB :]
        await trio.sleep(0.1)
        assert not node.mirror.followers.live()
        assert node.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER)
        assert node.fast_path is None or node.fast_path.taken == 2


async def test_one_connection_can_follow_again(node: Any) -> None:
    # without a clock that jumps, because at its end all tasks wait for the kernel, and a jump would overtake it
    node.store.download(LAYER).grow_to(len(LAYER))
    async with followed(node) as reply:
        for place in range(3):
            if place:
                lines = f"GET /v2/library/app/blobs/{Digest.of(LAYER)} HTTP/1.1", "Host: x", "X-Spegel-Mirrored: true"
                await reply._stream.send_all("\r\n".join((*lines, f"X-Spegel-Follow: {PEER}", "", "")).encode())
            assert await reply.head() == 200
            assert await reply.rest() == LAYER


async def test_a_download_that_stands_still_is_cut(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(LAYER).grow_to(MIB)
    async with followed(node) as reply:
        assert await reply.head() == 200
        assert await reply.read(MIB) == LAYER[:MIB]
        began = trio.current_time()
        assert await reply.rest() == b""
        assert STALL - 0.3 <= trio.current_time() - began < STALL + 0.3
    assert node.metric("spegel_transfers_cut_total") == 1


async def test_an_aborted_download_is_cut(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    download.grow_to(MIB)
    async with followed(node) as reply:
        assert await reply.head() == 200
        assert await reply.read(MIB) == LAYER[:MIB]
        began = trio.current_time()
        download.grow_to(2 * MIB)
        download.abort()
        assert await reply.rest() == LAYER[MIB : 2 * MIB]
        assert trio.current_time() - began < 1


async def test_more_bytes_than_promised_are_cut(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER, total=2 * MIB)
    download.grow_to(MIB)
    async with followed(node) as reply:
        assert await reply.head() == 200
        assert reply.length == 2 * MIB
        assert await reply.read(MIB) == LAYER[:MIB]
        download.grow_to(3 * MIB)
        assert len(await reply.rest()) < MIB


@pytest.mark.parametrize("total", [None, 5, 10**15 - 1], ids=["none", "less than there is", "absurd"])
async def test_a_total_that_can_not_be(autojump_clock: MockClock, node: Any, total: int | None) -> None:
    download = node.store.download(LAYER, total=total)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def grow() -> None:
            for size in range(6, 10_000):
                download.grow_to(size)
                await trio.sleep(0.1)

        nursery.start_soon(grow)
        await trio.sleep(0.05)
        assert await status(followed(node)) == 404
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()


async def test_interim_answers_tell_that_a_request_is_held(autojump_clock: MockClock, node: Any) -> None:
    other = node.store.download(OTHER)
    async with followed(node) as reply:
        for second in range(10):
            await trio.sleep(1)
            other.grow_to(second * 1000)
        node.store.download(LAYER).grow_to(len(LAYER))
        assert await reply.head() == 200
        assert 8 <= reply.interim <= 11
        assert await reply.rest() == LAYER


async def test_http_1_0_has_no_interim_answers(autojump_clock: MockClock, node: Any) -> None:
    """A proxy between two nodes may speak HTTP/1.0 to this one, and passes the header on."""
    other = node.store.download(OTHER)
    async with followed(node, version="1.0") as reply:
        for second in range(3):
            await trio.sleep(1)
            other.grow_to(second * 1000)
        node.store.download(LAYER).grow_to(len(LAYER))
        assert await reply.head() == 200
        assert reply.interim == 0
        assert await reply.rest() == LAYER


async def test_a_follower_may_come_first(autojump_clock: MockClock, start: Any) -> None:
    node = await start()
    other = node.store.download(OTHER)  # the runtime is at another layer
    async with followed(node) as reply:
        await trio.sleep(2)
        await runtime_asks(node)
        for step in range(20):
            await trio.sleep(1)
            other.grow_to(step * 1000)
        download = node.store.download(LAYER)
        await trio.sleep(1)
        download.commit()
        assert await reply.head() == 200
        assert await reply.rest() == LAYER


@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "not asked for"])
@pytest.mark.parametrize("work", ["none", "stands still", "goes on"])
async def test_how_long_a_follower_waits(autojump_clock: MockClock, start: Any, asks: bool, work: str) -> None:
    node = await start()
    if asks:
        await runtime_asks(node)
    other = node.store.download(OTHER) if work != "none" else None
    async with trio.open_nursery() as nursery:

        async def grow() -> None:
            assert other is not None
            for step in range(1000):
                other.grow_to(step)
                await trio.sleep(1)

        if work == "goes on":
            nursery.start_soon(grow)
        began = trio.current_time()
        assert await status(followed(node)) == 404
        longest = WAIT if asks else growing.UNASKED
        assert passed(began, {"none": growing.NO_DOWNLOAD, "stands still": growing.NO_PROGRESS}.get(work, longest))
        nursery.cancel_scope.cancel()


async def test_what_the_mirror_receives_is_progress(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    with node.mirror.begin(own_request(), "GET") as trace:
        async with followed(node) as reply:
            for _ in range(20):  # held until it is verified, so the runtime gets nothing
                await trio.sleep(1)
                trace.bytes += 100_000
            download.grow_to(MIB)
            assert await reply.head() == 200


def own_request(data: bytes = LAYER) -> ContentRequest:
    return parse_content_path(f"/v2/library/app/blobs/{Digest.of(data)}", "ns=docker.io")


async def test_a_node_that_waits_itself_keeps_its_followers_waiting(autojump_clock: MockClock, node: Any) -> None:
    """Its runtime makes no progress, because the source that it follows has nothing either."""
    node.store.download(LAYER)
    with node.mirror.begin(own_request(), "GET"):
        began = trio.current_time()
        assert await status(followed(node)) == 404
        assert passed(began, WAIT)
    node.mirror.begin(own_request(), "GET", (), "10.0.0.9")  # for another machine: it says nothing of the own runtime
    began = trio.current_time()
    assert await status(followed(node)) == 404
    assert passed(began, growing.NO_PROGRESS)


async def test_a_node_whose_own_wait_ends_gets_time_to_begin(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    async with followed(node) as reply:
        with node.mirror.begin(own_request(), "GET"):
            await trio.sleep(15)
        await trio.sleep(growing.NO_PROGRESS - 0.5)  # its runtime goes upstream
        download.grow_to(MIB)
        assert await reply.head() == 200


async def test_the_wait_counts_anew_with_another_verdict(autojump_clock: MockClock, start: Any) -> None:
    verdicts = [(What.FOLLOW, None), (What.FOLLOW, "another"), (What.CLAIM, None)]

    class Follows:
        def verdict(self, digest: Digest) -> object:
            return verdicts[min(int((trio.current_time() - began) / 20), 2)]

    node = await start()
    await runtime_asks(node)
    node.mirror.peers.follows = Follows()
    began = trio.current_time()
    node.store.download(LAYER)
    with node.mirror.begin(own_request(), "GET"):
        assert await status(followed(node)) == 404
    assert passed(began, 40 + WAIT)


async def test_a_stall_in_the_middle_of_a_chain_is_waited_for(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    download.grow_to(MIB)
    async with followed(node) as reply:
        assert await reply.head() == 200
        with node.mirror.begin(own_request(), "GET"):
            await trio.sleep(CHAIN_STALL - 1)
            download.grow_to(2 * MIB)
            assert await reply.read(2 * MIB) == LAYER[: 2 * MIB]
            await trio.sleep(STALL + 1)
        await trio.sleep(STALL - 1)  # the runtime resumes upstream
        download.commit()
        assert await reply.rest() == LAYER[2 * MIB :]


async def test_an_ingest_that_no_look_has_seen(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(OTHER)
    async with followed(node) as reply:
        await trio.sleep(0.5)
        node.store.unseen.append(LAYER)
        assert await reply.head() == 200
        assert await reply.rest() == LAYER
    assert node.store.expected == [Digest.of(LAYER)] * 2


async def test_the_runtime_is_not_asked_for_what_it_did_not_want(autojump_clock: MockClock, start: Any) -> None:
    node = await start()
    node.store.unseen.append(LAYER)
    assert await status(followed(node)) == 404
    assert node.store.expected == []


async def test_only_what_the_own_runtime_asked_for_is_shown(autojump_clock: MockClock, start: Any) -> None:
    node = await start(images=ImageFilter.build(["docker.io"], ["secret"]))
    node.store.download(LAYER).grow_to(MIB)
    assert await status(followed(node)) == 404
    assert await status(asked(node, Digest.of(LAYER), ns="quay.io")) == 404  # refused by the filters
    assert await status(followed(node)) == 404
    assert await status(asked(node, Digest.of(LAYER), method="HEAD")) == 404
    assert await status(asked(node, Digest.of(LAYER), "X-Spegel-Mirrored: true")) == 404  # another node's
    assert await status(followed(node)) == 404
    await runtime_asks(node)
    assert await status(followed(node)) == 200
    await trio.sleep(SHOWN_FOR + 1)
    assert await status(followed(node)) == 404


async def test_another_namespace_is_not_shown(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(LAYER, namespace="moby").grow_to(MIB)
    assert await status(followed(node)) == 404


async def test_credentials_come_first(autojump_clock: MockClock, start: Any, tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("node:secret\n")
    node = await start(credentials=Credentials(tmp_path / "passwords"))
    secret = f"Authorization: Basic {base64.b64encode(b'node:secret').decode()}"
    assert await status(asked(node, Digest.of(LAYER), secret)) == 404
    node.store.download(LAYER).grow_to(len(LAYER))
    began = trio.current_time()
    assert await status(followed(node)) == 401
    assert passed(began, 0)
    async with followed(node, Digest.of(LAYER), secret) as reply:
        assert await reply.head() == 200
        assert await reply.rest() == LAYER


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", ["X-Spegel-Mirrored: true"]),
        ("GET", ["X-Spegel-Mirrored: true", "X-Spegel-Follow: "]),
        ("GET", ["X-Spegel-Mirrored: true", "X-Spegel-Follow: true, O0Il"]),
        ("GET", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {'1' * 200}"]),
        ("GET", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {'z' * 128}"]),
        ("HEAD", ["X-Spegel-Mirrored: true", f"X-Spegel-Follow: {PEER}"]),
    ],
    ids=["Spegel", "no peer", "no base58", "too long", "too many bytes", "HEAD"],
)
async def test_other_peers_get_404_at_once(
    autojump_clock: MockClock, node: Any, method: str, fields: list[str]
) -> None:
    node.store.download(LAYER).grow_to(2 * MIB)
    began = trio.current_time()
    assert await status(asked(node, Digest.of(LAYER), *fields, method=method)) == 404
    assert passed(began, 0)


async def test_nothing_is_shown_if_following_is_off(autojump_clock: MockClock, start: Any) -> None:
    node = await start(follow=False)
    await runtime_asks(node)
    node.store.download(LAYER).grow_to(2 * MIB)
    began = trio.current_time()
    assert await status(followed(node)) == 404
    assert passed(began, 0)


@pytest.mark.parametrize(
    ("wanted", "start_at", "stop"),
    [
        ("bytes=100-199", 100, 200),
        (f"bytes={2 * MIB}-", 2 * MIB, len(LAYER)),
        (f"bytes={2 * MIB}-{99 * MIB}", 2 * MIB, len(LAYER)),
        ("bytes=-5", len(LAYER) - 5, len(LAYER)),
    ],
)
async def test_a_range_waits_for_its_first_byte(
    autojump_clock: MockClock, node: Any, wanted: str, start_at: int, stop: int
) -> None:
    download = node.store.download(LAYER)
    async with followed(node, Digest.of(LAYER), f"Range: {wanted}") as reply:
        download.grow_to(start_at)
        with trio.move_on_after(3) as waiting:
            await reply.head()
        assert waiting.cancelled_caught
        download.grow_to(start_at + 1)
        assert await reply.head() == 206
        assert reply.fields["content-range"] == f"bytes {start_at}-{stop - 1}/{len(LAYER)}"
        assert reply.length == stop - start_at
        download.commit()
        assert await reply.rest() == LAYER[start_at:stop]


async def test_ranges_that_are_not_sent(autojump_clock: MockClock, node: Any) -> None:
    node.store.download(LAYER).grow_to(MIB)
    async with followed(node, Digest.of(LAYER), f"Range: bytes={len(LAYER)}-") as reply:
        assert await reply.head() == 416
        assert reply.fields["content-range"] == f"bytes */{len(LAYER)}"
    assert await status(followed(node, Digest.of(LAYER), "Range: bytes=0-1,5-6")) == 400
    async with followed(node, Digest.of(LAYER), "Range: bytes=0-") as reply:
        assert await reply.head() == 200


async def test_the_sixty_fifth_follower(autojump_clock: MockClock, node: Any, nursery: trio.Nursery) -> None:
    node.store.download(LAYER).grow_to(MIB)
    there, leave = list[int](), trio.Event()

    async def follow() -> None:
        async with followed(node) as reply:
            there.append(await reply.head())
            await leave.wait()

    for _ in range(MOST):
        nursery.start_soon(follow)
    while len(there) < MOST:
        await trio.sleep(0.01)
    assert set(there) == {200}
    began = trio.current_time()
    assert await status(followed(node)) == 404
    assert passed(began, 0)
    leave.set()
    await trio.sleep(1)
    assert await status(followed(node)) == 200


async def test_requests_for_what_nobody_asked_for_leave_room(
    autojump_clock: MockClock, node: Any, nursery: trio.Nursery
) -> None:
    """They need no digest that exists, and would keep all others from following this node."""
    node.store.download(LAYER).grow_to(MIB)
    ends: list[int] = []

    async def guess(number: int) -> None:
        ends.append(await status(followed(node, Digest.of(b"%d" % number))))

    for number in range(MOST):
        nursery.start_soon(guess, number)
    await trio.sleep(0.3)
    assert ends == [404] * (MOST - MOST_UNASKED)
    assert await status(followed(node)) == 200
    await trio.sleep(growing.UNASKED + 1)
    assert ends == [404] * MOST
    assert not node.mirror.followers.live()


async def test_clients_that_leave_free_everything(autojump_clock: MockClock, node: Any) -> None:
    await trio.sleep(1)
    before = open_files()
    download = node.store.download(LAYER)
    for size in (0, MIB):
        download.grow_to(size)
        async with followed(node) as reply:
            if size:
                await reply.head()
            await trio.sleep(1)
            assert len(node.mirror.followers.live()) == 1
        await trio.sleep(3)
        assert not node.mirror.followers.live()
    assert open_files() <= before + 1  # the download's own


async def test_a_slow_follower_is_behind(autojump_clock: MockClock, start: Any) -> None:
    node = await start()
    data = os.urandom(32 * MIB)
    await runtime_asks(node, data)
    download = node.store.download(data)
    async with followed(node, Digest.of(data)) as slow:
        async with followed(node, Digest.of(data)) as fast:
            for size in range(MIB, len(data) + 1, MIB):
                download.grow_to(size)
                if size == MIB:
                    assert await slow.head() == await fast.head() == 200
                assert len(await fast.read(MIB)) == MIB
                await trio.sleep(0.2)
            assert node.mirror.followers.behind(trio.current_time()) == (PEER,)
            assert [send.behind for send in node.mirror.followers.live()] == [True]  # the fast one has all
        assert await slow.rest() == data
    await trio.sleep(0.1)
    assert node.mirror.followers.behind(trio.current_time()) == ()


async def test_what_the_index_has_meanwhile_is_own_content(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    async with followed(node) as reply:
        await trio.sleep(1)
        download.abort()
        node.store.add_content(LAYER, "application/vnd.oci.image.layer.v1.tar")
        assert await reply.head() == 200
        assert reply.fields["content-type"] == "application/vnd.oci.image.layer.v1.tar"
        assert await reply.rest() == LAYER


async def test_what_was_committed_a_moment_ago(autojump_clock: MockClock, node: Any) -> None:
    download = node.store.download(LAYER)
    assert await node.store.at_work() == 0
    download.commit()
    async with followed(node) as reply:
        assert await reply.head() == 200
        assert await reply.rest() == LAYER


class TestManifests:
    async def test_all_of_it_is_sent(self, autojump_clock: MockClock, start: Any) -> None:
        node = await start()
        await runtime_asks(node, MANIFEST, kind="manifests")
        download = node.store.download(MANIFEST)
        async with followed(node, Digest.of(MANIFEST), kind="manifests") as reply:
            download.grow_to(20)
            await trio.sleep(1.5)
            download.commit()
            assert await reply.head() == 200
            assert reply.fields["content-type"] == OCI_MANIFEST
            assert await reply.rest() == MANIFEST

    async def test_it_is_waited_for_two_seconds(self, autojump_clock: MockClock, start: Any) -> None:
        node = await start()
        await runtime_asks(node, MANIFEST, kind="manifests")
        node.store.download(MANIFEST).grow_to(len(MANIFEST) - 1)
        began = trio.current_time()
        assert await status(followed(node, Digest.of(MANIFEST), kind="manifests")) == 404
        assert passed(began, growing.MANIFEST)

    @pytest.mark.parametrize("content", [MANIFEST.replace(b"2", b"3"), b"no manifest"], ids=["wrong bytes", "a blob"])
    async def test_something_else(self, autojump_clock: MockClock, start: Any, content: bytes) -> None:
        node = await start()
        digest = Digest.of(MANIFEST) if content.startswith(b"{") else Digest.of(content)
        assert await status(asked(node, digest, kind="manifests")) == 404
        node.store.download(content, named=digest).grow_to(len(content))
        began = trio.current_time()
        assert await status(followed(node, digest, kind="manifests")) == 404
        assert passed(began, 0)
