"""A node whose downloads a test lets grow, and requests of followers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from spegel_consul.disk import threads
from spegel_consul.disk.foreign_files import FileCalls
from spegel_consul.oci.digest import Digest
from spegel_consul.store import Downloads
from spegel_consul.store.containerd import ingests as ingests_module
from spegel_consul.store.containerd.ingests import Ingests
from spegel_consul.zerocopy.growing_file import GrowingFile

from .conftest import FileStore

MIB = 1 << 20
LAYER = os.urandom(3 * MIB + 77)
OTHER = os.urandom(2 * MIB)
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

    def is_idle(self) -> bool:
        return self._ingests.is_idle()

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
    monkeypatch.setattr(threads, "in_thread", at_once)


class Reply:
    """The answer to one request, read as it comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._received = bytearray()
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
