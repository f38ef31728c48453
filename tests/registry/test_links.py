# In an image layout, which others may fill, nothing but the files themselves is served: the same on both paths,
# whatever the size, whether a link is there from the beginning or takes a file's place later.

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.store.layout import LayoutStore

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    (path / "blobs" / "sha256").mkdir(parents=True)
    return path


def put(layout: Path, content: bytes) -> tuple[Path, str]:
    """An image with ``content`` as its layer: where the layer lies, and its URL."""
    layer = {"mediaType": OCI_LAYER, "digest": Digest.of(content), "size": len(content)}
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": layer, "layers": [layer]}).encode()
    entry = {"mediaType": OCI_MANIFEST, "digest": Digest.of(manifest), "size": len(manifest)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    for body in (content, manifest):
        (layout / "blobs" / "sha256" / Digest.of(body).encoded).write_bytes(body)
    digest = Digest.of(content)
    return layout / "blobs" / "sha256" / digest.encoded, f"/v2/library/app/blobs/{digest}?ns=docker.io"


def link(path: Path) -> None:
    secret = path.parents[3] / "secret"
    path.rename(secret)
    path.symlink_to(secret)


def linked_to_other_bytes(path: Path) -> None:
    secret = path.parents[3] / "secret"
    secret.write_bytes(b"s" * path.stat().st_size)
    path.unlink()
    path.symlink_to(secret)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("size", [1000, 300_000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("change", [link, linked_to_other_bytes, fifo, directory])
@pytest.mark.parametrize("when", ["before", "after it was listed"])
async def test_what_is_no_file_is_not_served(
    start_node: Any,
    nursery: trio.Nursery,
    layout: Path,
    size: int,
    method: str,
    change: Callable[[Path], None],
    when: str,
) -> None:
    path, url = put(layout, b"x" * size)
    if when == "before":
        change(path)
    store = LayoutStore(layout, interval=3600)
    await nursery.start(store.run)
    node = await start_node(store=store)
    if when != "before":
        assert store.describe(Digest(f"sha256:{path.name}")) is not None
        change(path)
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False) as client:
        with trio.fail_after(30):
            answer = await client.request(method, url)
    assert answer.status_code == 404


async def test_small_content_that_is_not_what_its_name_says_is_not_sent(
    start_node: Any, nursery: trio.Nursery, layout: Path
) -> None:
    """Larger content is for the client to verify, as it is from any registry."""
    path, url = put(layout, b"x" * 1000)
    store = LayoutStore(layout, interval=3600)
    await nursery.start(store.run)
    node = await start_node(store=store)
    async with httpx.AsyncClient(verify=False, base_url=node.url, trust_env=False) as client:
        path.write_bytes(b"y" * 1000)
        assert (await client.get(url)).status_code == 404


@pytest.mark.parametrize("name", ["index.json", "blobs", "blobs/sha256"])
async def test_a_link_within_a_layout_is_a_problem_that_is_told(
    nursery: trio.Nursery, layout: Path, tmp_path: Path, name: str
) -> None:
    put(layout, b"content")
    (layout / name).rename(tmp_path / "elsewhere")
    (layout / name).symlink_to(tmp_path / "elsewhere")
    store = LayoutStore(layout)
    await nursery.start(store.run)
    assert "symbolic link" in (store.problem or "")
    assert store.keys() == frozenset()


async def test_the_layout_itself_may_be_a_link(nursery: trio.Nursery, layout: Path, tmp_path: Path) -> None:
    put(layout, b"content")
    (tmp_path / "current").symlink_to(layout)
    store = LayoutStore(tmp_path / "current")
    await nursery.start(store.run)
    assert store.problem is None
    assert store.describe(Digest.of(b"content")) is not None
