"""The fast path and the ASGI path give the same answers, byte for byte."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from lab import thorough

from spegel_consul.http.peer_client import PeerClient
from spegel_consul.http.server.connection import Link
from spegel_consul.http.server.listen import ListenAddress, listen
from spegel_consul.http.server.serve import serve
from spegel_consul.metrics.sidecar_metrics import Metrics
from spegel_consul.oci.digest import Digest
from spegel_consul.oci.filters import ImageFilter
from spegel_consul.registry import own_files
from spegel_consul.registry.asgi_path import ContentApp
from spegel_consul.registry.content_cache import ByteCache
from spegel_consul.registry.fast_path import FastPath
from spegel_consul.registry.mirror.mirror import Mirror
from spegel_consul.registry.mirror.mirror_peers import MirrorParts, MirrorSettings
from spegel_consul.registry.plan import Planner
from spegel_consul.registry.registry_app import build_app
from spegel_consul.store.layout import LayoutStore

from .conftest import ListRouter

REQUESTS = thorough.drawn(1_000, 20_000)
BIG = os.urandom(300_000)
SMALL = b"small layer"


class Layout:
    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs" / "sha256").mkdir(parents=True)
        self.big, self.small = self.put(BIG), self.put(SMALL)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.descriptor(self.put(b"{}"), 2, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                self.descriptor(self.big, len(BIG), "application/vnd.oci.image.layer.v1.tar"),
                self.descriptor(self.small, len(SMALL), "application/vnd.oci.image.layer.v1.tar"),
            ],
        }
        body = json.dumps(manifest).encode()
        self.manifest = self.put(body)
        entry = self.descriptor(self.manifest, len(body), str(manifest["mediaType"]))
        entry["annotations"] = {"org.opencontainers.image.ref.name": "docker.io/library/app:v1"}
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))

    def put(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        (self.path / "blobs" / "sha256" / digest.encoded).write_bytes(content)
        return digest

    @staticmethod
    def descriptor(digest: Digest, size: int, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest, "size": size}


class Server:
    """One registry on ``layout``, with or without the fast path."""

    def __init__(self, layout: Layout, *, short: bool, cache: int = 1 << 20, interval: float = 3600) -> None:
        self.metrics = Metrics()
        self.store = LayoutStore(layout.path, interval=interval)
        planner = Planner(self.store, ImageFilter.build([], ["refused"]))
        self.client = PeerClient()
        settings = MirrorSettings(resolve_timeout=10)
        mirror = Mirror(MirrorParts(ListRouter(), self.client, self.metrics, settings))  # type: ignore[arg-type]
        self.app = ContentApp(build_app(lambda: None), planner, self.store, mirror, self.metrics)  # type: ignore[arg-type]
        self.short = FastPath(planner, self.store, mirror, ByteCache(cache), self.metrics) if short else None
        self.taken = self.taken_at_once = 0
        self.stop = trio.Event()
        self.sock = listen(ListenAddress("127.0.0.1", 0), "--registry-addr")
        self.address = self.sock.getsockname()

    def at_once(self, data: bytes, local: bool) -> bytes | None:
        assert self.short is not None
        found = self.short.at_once(data, local)
        self.taken_at_once += found is not None
        return found

    async def __call__(self, data: bytes, link: Link) -> bool:
        assert self.short is not None
        taken = await self.short(data, link)
        self.taken += taken
        return taken

    async def start(self, nursery: trio.Nursery) -> None:
        await nursery.start(self.store.run)

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            await serve(
                self.app,  # type: ignore[arg-type]
                self.sock,
                stop=self.stop.wait,
                fast_path=self if self.short else None,
                drain_timeout=0.5,
                task_status=task_status,
            )

        await nursery.start(run)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def generated(layout: Layout, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Requests, most of them sound, and whether the answer has a body."""
    dice = random.Random(seed)
    names = ["library/app", "app", "a/b/c", "refused/x", "Upper", "..", "a//b", "%61pp"]
    digests = [layout.big, layout.small, layout.manifest, "sha256:" + "0" * 64, "sha256:xyz", "md5:00"]
    queries = ["", "?ns=docker.io", "?ns=quay.io", "?ns=localhost%3A5001", "?ns=", "?ns=%00", "?a=b&ns=docker.io"]
    queries += ["?ns=docker.io&ns=quay.io", "?ns=Index.Docker.io"]
    namespaces = ["docker.io", "quay.io", "INDEX.docker.io", "a/b", "", "docker.io\r\nOCI-Namespace: quay.io"]
    ranges = [
        *(
            "bytes=0-",
            "bytes=5-9",
            "bytes=-7",
            "bytes=299999-",
            "bytes=300000-",
            "bytes=9-5",
            "x",
            f"bytes={'9' * 20}-",
        ),
        *(
            "bytes=0-1,5-6",
            "bytes=5-6, 0-1,-3",
            "bytes=0-4,5-9",
            "bytes=9-,300000-",
            "bytes=300000-,-0",
            "bytes=0-1,9-5",
        ),
        f"bytes={','.join(f'{at * 9}-{at * 9 + 1}' for at in range(64))}",
        f"bytes={','.join(f'{at * 9}-{at * 9 + 1}' for at in range(65))}",
    ]
    before: list[tuple[bytes, bool]] = []
    while len(before) < REQUESTS:
        if before and dice.random() < 0.3:
            yield dice.choice(before[-20:])  # as runtimes do
            continue
        method = dice.choices(["GET", "HEAD", "PUT"], [10, 6, 1])[0]
        kind = dice.choice(["manifests", "blobs"])
        reference = dice.choice([*digests, *digests[:3] * 4, "v1", "none", "-bad"])
        path = f"/v2/{dice.choices(names, [8, 4, 2, 1, 1, 1, 1, 1])[0]}/{kind}/{reference}{dice.choice(queries)}"
        headers = ["Host: x"]
        if dice.random() < 0.4:
            headers.append(f"Range: {dice.choice(ranges)}")
        if dice.random() < 0.1:
            headers.append('If-Range: "x"')
        if dice.random() < 0.3:
            headers.append(f"User-Agent: {dice.choice(['containerd/2.1.9', 'docker/28.5', 'curl/8'])}")
        if dice.random() < 0.5:
            headers.append("X-Spegel-Mirrored: true")
        if dice.random() < 0.2:
            headers.append(f"{dice.choice(['OCI-Namespace', 'oci-namespace'])}: {dice.choice(namespaces)}")
        if dice.random() < 0.3:
            headers.append(f"Connection: {dice.choice(['keep-alive', 'Keep-Alive', 'x'])}")
        if dice.random() < 0.3:
            headers.append("Authorization: Basic dTpw")
        if dice.random() < 0.05:
            headers.append("Accept: a/b\r\nAccept: c/d")
        dice.shuffle(headers)
        before.append(("\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode(), method != "HEAD"))
        yield before[-1]


async def answer(stream: trio.SocketStream, request: bytes, has_body: bool) -> bytes:
    await stream.send_all(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await some(stream)
    head, _, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    wanted = int(length[1]) if length and has_body else 0
    while len(body) < wanted:
        body += await some(stream)
    assert len(body) == wanted, "more bytes than were promised"
    if boundary := re.search(rb"; boundary=([0-9a-f]{32})\r\n", head):  # another one in each answer
        assert b"\r\ncontent-range:" not in head
        head, body = head.replace(boundary[1], b"B"), body.replace(boundary[1], b"B")
    return re.sub(rb"(?i)\r\ndate: [^\r]*", b"", head) + b"\r\n\r\n" + body


async def some(stream: trio.SocketStream) -> bytes:
    data = await stream.receive_some(1 << 20)
    assert data, "the server closed the connection"
    return bytes(data)


async def test_both_roads_give_the_same_answers(layout: Layout, nursery: trio.Nursery) -> None:
    short, long = Server(layout, short=True), Server(layout, short=False)
    for server in (short, long):
        await server.start(nursery)
    one = await trio.open_tcp_stream(*short.address)
    other = await trio.open_tcp_stream(*long.address)
    async with one, other:
        for request, has_body in generated(layout, thorough.FIRST_SEED):
            with trio.fail_after(10):
                assert await answer(one, request, has_body) == await answer(other, request, has_body), request
    assert short.taken > REQUESTS / 4, "the fast path was hardly ever taken"
    assert short.taken_at_once > REQUESTS / 40, "hardly an answer was remembered"
    short.client.close()
    long.client.close()


@pytest.mark.parametrize("cut", [1, 20, 60])
async def test_requests_in_fragments_and_in_one_piece(layout: Layout, nursery: trio.Nursery, cut: int) -> None:
    server = Server(layout, short=True)
    await server.start(nursery)
    request = f"GET /v2/app/blobs/{layout.big} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    stream = await trio.open_tcp_stream(*server.address)
    async with stream:
        whole = await answer(stream, request, True)
        for start in range(0, len(request), cut):
            await stream.send_all(request[start : start + cut])
            await trio.sleep(0.001)
        assert await answer(stream, b"", True) == whole
        await stream.send_all(request + request)
        for _ in range(2):
            # two answers follow each other, so they are read by their length
            received = b""
            while len(received) < len(whole) + len("\r\ndate: Mon, 23 Nov 2026 20:00:00 GMT"):
                received += bytes(
                    await stream.receive_some(
                        len(whole) + len("\r\ndate: Mon, 23 Nov 2026 20:00:00 GMT") - len(received)
                    )
                )
            assert received.endswith(BIG)
        assert await answer(stream, request, True) == whole


async def test_a_file_that_went_away_is_left_to_the_long_road(layout: Layout, nursery: trio.Nursery) -> None:
    server = Server(layout, short=True, cache=0)
    await server.start(nursery)
    (layout.path / "blobs" / "sha256" / layout.big.encoded).unlink()
    (layout.path / "blobs" / "sha256" / layout.small.encoded).write_bytes(b"cut")
    stream = await trio.open_tcp_stream(*server.address)
    async with stream:
        for digest in (layout.big, layout.small):
            request = f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            assert (await answer(stream, request, True)).startswith(b"HTTP/1.1 404 ")
    server.client.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_small_content_is_kept_only_if_it_is_right(layout: Layout, nursery: trio.Nursery) -> None:
    server = Server(layout, short=True)
    await server.start(nursery)
    path = layout.path / "blobs" / "sha256" / layout.small.encoded
    path.write_bytes(bytes(len(SMALL)))  # a file that is being written in place
    request = f"GET /v2/app/blobs/{layout.small} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    stream = await trio.open_tcp_stream(*server.address)
    async with stream:
        await answer(stream, request, True)
        path.write_bytes(SMALL)
        assert (await answer(stream, request, True)).endswith(SMALL)
    server.client.close()


@pytest.mark.parametrize("cache", [0, 1 << 20], ids=["from disk", "from memory"])
async def test_what_is_remembered_ends_with_the_content(layout: Layout, nursery: trio.Nursery, cache: int) -> None:
    index = layout.path / "index.json"
    without = index.read_text()
    loose = layout.put(b"loose")
    content = json.loads(without)
    content["manifests"].append(layout.descriptor(loose, 5, "application/octet-stream"))
    index.write_text(json.dumps(content))
    server = Server(layout, short=True, cache=cache, interval=0.05)
    await server.start(nursery)
    request = f"GET /v2/app/blobs/{loose} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with await trio.open_tcp_stream(*server.address) as stream:
        for _ in range(3):
            assert (await answer(stream, request, True)).endswith(b"\r\n\r\nloose")
        assert server.taken_at_once == 2
        blob = layout.path / "blobs" / "sha256" / loose.encoded
        blob.write_bytes(b"grown file")  # then at least its head and its body agree
        await trio.sleep(0.2)
        assert await answer(stream, request, True)
        index.write_text(without)
        (layout.path / "blobs" / "sha256" / loose.encoded).unlink()
        with trio.fail_after(5):
            while not (await answer(stream, request, True)).startswith(b"HTTP/1.1 404 "):
                await trio.sleep(0.01)
    server.client.close()


async def test_a_media_type_can_not_become_a_header(layout: Layout, nursery: trio.Nursery) -> None:
    index = json.loads((layout.path / "index.json").read_text())
    evil = layout.descriptor(layout.put(b"evil"), 4, "text/x\r\nSet-Cookie: a=b\r\n\r\nbody")
    index["manifests"].append(evil)
    (layout.path / "index.json").write_text(json.dumps(index))
    for short in (True, False):
        server = Server(layout, short=short)
        await server.start(nursery)
        stream = await trio.open_tcp_stream(*server.address)
        async with stream:
            request = f"GET /v2/app/blobs/{evil['digest']} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            received = await answer(stream, request, True)
        assert b"Set-Cookie" not in received
        assert b"content-type: application/octet-stream" in received
        server.client.close()


async def test_clients_that_leave_or_stop_reading(layout: Layout, nursery: trio.Nursery) -> None:
    huge = layout.put(bytes(64 << 20))
    index = json.loads((layout.path / "index.json").read_text())
    index["manifests"].append(layout.descriptor(huge, 64 << 20, "application/octet-stream"))
    (layout.path / "index.json").write_text(json.dumps(index))
    server = Server(layout, short=True)
    await server.start(nursery)
    request = f"GET /v2/app/blobs/{huge} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-\r\n\r\n".encode()
    before = open_files()
    for _ in range(20):
        stream = await trio.open_tcp_stream(*server.address)
        async with stream:
            await stream.send_all(request)
            await stream.receive_some(1 << 16)
    with trio.fail_after(5):
        while open_files() > before + 1:
            await trio.sleep(0.01)
    stalled = await trio.open_tcp_stream(*server.address)
    async with stalled:
        await stalled.send_all(request)
        await stalled.receive_some(1000)
        fresh = await trio.open_tcp_stream(*server.address)
        async with fresh:
            small = f"GET /v2/app/blobs/{layout.small} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            assert (await answer(fresh, small, True)).endswith(SMALL)
        server.stop.set()
        with trio.fail_after(3):
            while True:
                try:
                    if not await stalled.receive_some(1 << 20):
                        break
                except trio.BrokenResourceError:
                    break
                await trio.sleep(0.05)


@pytest.mark.parametrize("known", [True, False], ids=["known to the kernel", "to be looked up on the disk"])
async def test_the_event_loop_does_not_wait_for_the_name_of_a_blob(
    layout: Layout, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    original, on_the_loop, in_threads = os.open, 0, 0

    def watched(path: str | Path, *args: Any, **kwargs: Any) -> int:
        nonlocal on_the_loop, in_threads
        if "/blobs/" in str(path):
            on_the_loop += threading.current_thread() is threading.main_thread()
            in_threads += threading.current_thread() is not threading.main_thread()
        return original(path, *args, **kwargs)

    def unknown(path: str, size: int) -> int:
        raise BlockingIOError

    server = Server(layout, short=True, cache=0)
    await server.start(nursery)
    monkeypatch.setattr(os, "open", watched)
    if not known:
        monkeypatch.setattr(own_files, "open_cached", unknown)
    async with await trio.open_tcp_stream(*server.address) as stream:
        for digest, content in ((layout.big, BIG), (layout.small, SMALL)):
            for method, wanted, expected in (
                ("GET", "", content),
                ("GET", "Range: bytes=2-6\r\n", content[2:7]),
                ("GET", "Range: bytes=0-1,5-6\r\n", content[5:7]),
                ("HEAD", "", b""),
            ):
                request = f"{method} /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n{wanted}\r\n".encode()
                for _ in range(2):  # what is remembered may need no task
                    got = await answer(stream, request, method == "GET")
                    assert got.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 206 "))
                    assert expected in got
    assert server.taken + server.taken_at_once == 16
    assert on_the_loop == 0
    assert known or in_threads
