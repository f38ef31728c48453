"""The demonstration of a cold start: its drawing, its upstream, and what a node's store sees of a pull."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import trio
from rich.console import Console

from spegel_consul.dev import herd
from spegel_consul.dev.processes import Node
from spegel_consul.dev.sample import IMAGE, manifest_of, write_image, write_layout
from spegel_consul.dev.upstream import Upstream
from spegel_consul.oci.digest import Digest
from spegel_consul.store.layout import LayoutStore


def pulls(*sources: str) -> list[herd._Pull]:
    """Pulls of node1 and so on, with the nodes that they follow."""
    made = []
    for number, source in enumerate(sources):
        node = Node(number, f"127.0.0.{number + 1}", 5050, Path("/none"))
        made.append(herd._Pull(node, 100, have=10 * number, follows={"app": source} if source else {}))
    return made


def drawn(*sources: str) -> list[tuple[int, str]]:
    """The depth and the name of each node."""
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(herd.drawing(pulls(*sources), Upstream(Path("/none"), 1.0)))
    lines = capture.get().splitlines()
    found = [(line.index("node") // 4, line[line.index("node") :].split()[0]) for line in lines if "node" in line]
    assert len(found) == len(sources), lines
    return found


@pytest.mark.parametrize(
    ("sources", "tree"),
    [
        (("", "node1", "node2"), [(1, "node1"), (2, "node2"), (3, "node3")]),
        (("node3", "", "node2"), [(1, "node2"), (2, "node3"), (3, "node1")]),
        (("", "", "unknown"), [(1, "node1"), (1, "node2"), (1, "node3")]),
        (("node2", "node1", "node1"), [(1, "node1"), (2, "node3"), (2, "node2")]),
    ],
    ids=["chain", "in any order", "not placed", "circle"],
)
def test_each_node_is_drawn_once_below_its_source(sources: tuple[str, ...], tree: list[tuple[int, str]]) -> None:
    assert sorted(drawn(*sources)) == sorted(tree)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "image").mkdir()
    write_image(tmp_path / "image", 1 << 20)
    return tmp_path / "image"


async def test_the_upstream_counts_content_and_nothing_else(image: Path) -> None:
    upstream = Upstream(image, 1 << 30)
    digest = manifest_of(image)
    async with upstream.serving("127.0.0.1"), httpx.AsyncClient(verify=False, trust_env=False) as client:
        base = f"http://{upstream.address}/v2/demo/hello"
        head = await client.head(f"{base}/manifests/{IMAGE.rpartition(':')[2]}")
        assert (head.status_code, head.headers["docker-content-digest"]) == (200, digest)
        for wrong in ("manifests/v9", f"blobs/sha256:{'0' * 64}", "blobs/..%2f..%2fetc", "tags/list"):
            assert (await client.get(f"{base}/{wrong}")).status_code == 404
        assert upstream.sent == 0
        body = (await client.get(f"{base}/manifests/{digest}")).content
        assert Digest.of(body) == digest
        assert upstream.sent == len(body)


async def test_the_link_of_the_upstream_is_shared(image: Path) -> None:
    upstream = Upstream(image, 1 << 20)
    layers = [f"blobs/sha256:{path.name}" for path in image.glob("blobs/sha256/*")]
    began = trio.current_time()
    async with (
        upstream.serving("127.0.0.1"),
        httpx.AsyncClient(verify=False, trust_env=False) as client,
        trio.open_nursery() as nursery,
    ):
        for layer in layers:
            nursery.start_soon(client.get, f"http://{upstream.address}/v2/demo/hello/{layer}")
    assert trio.current_time() - began >= upstream.sent / (1 << 20) >= 1


async def test_a_download_of_the_demonstration_can_be_followed(tmp_path: Path) -> None:
    write_layout(tmp_path, [])
    store = LayoutStore(tmp_path)
    content = b"x" * 1000
    digest = Digest.of(content)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        assert await store.downloading(digest) is None
        ingest = herd._begin(tmp_path, "layer", digest, len(content))
        (ingest / "data").write_bytes(content[:400])
        await trio.sleep(1)
        growing = await store.downloading(digest)
        assert growing is not None
        with growing:
            assert (growing.size(), growing.total, growing.complete) == (400, 1000, False)
            assert await store.at_work() == 400
            (ingest / "data").write_bytes(content)
            herd._commit(tmp_path, ingest, digest)
            assert growing.complete
        downloads = await store.downloads()
        assert (downloads.growing, downloads.ended) == ({}, {digest})
        whole = await store.downloading(digest)
        assert whole is not None, "shown until an image in index.json has it"
        with whole:
            assert (whole.size(), whole.complete) == (1000, True)
        nursery.cancel_scope.cancel()


def test_wrong_bytes_end_the_demonstration(tmp_path: Path) -> None:
    ingest = herd._begin(tmp_path, "layer", Digest.of(b"right"), 5)
    (ingest / "data").write_bytes(b"wrong")
    with pytest.raises(herd.DevError, match="do not have digest"):
        herd._commit(tmp_path, ingest, Digest.of(b"right"))
