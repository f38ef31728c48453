"""A node that follows sources which a test lets grow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.ring.dht.claim_reports import Why

from ...image import LAYER
from .growing_source import DownloadingStore, GrowingSource

OTHER = bytes(reversed(range(251))) * 8000
CONFIG = b'{"os":"linux"}'
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(CONFIG), "size": len(CONFIG), "mediaType": "application/x"},
        "layers": [
            {"digest": Digest.of(each), "size": len(each), "mediaType": "application/x"} for each in (LAYER, OTHER)
        ],
    }
).encode()
GROUP = Digest.of(MANIFEST)
CONTENT = {Digest.of(each): each for each in (LAYER, OTHER, CONFIG, MANIFEST)}
HELD, STREAMED = MirrorSettings(follow=True), MirrorSettings(follow=True, verify_first=0)
WAYS = pytest.mark.parametrize("settings", [HELD, STREAMED], ids=["held", "streamed"])


def path(content: bytes, kind: str = "blobs") -> str:
    return f"/v2/library/app/{kind}/{Digest.of(content)}?ns=docker.io"


async def start(start_node: Any, tmp_path: Path, settings: MirrorSettings = STREAMED, **how: Any) -> Any:
    """A node whose runtime downloads both layers, and whose mirror knows the manifest."""
    store = DownloadingStore(tmp_path / "asker")
    store.download(LAYER)
    store.download(OTHER)
    node = await start_node(settings=settings, store=store, **how)
    node.mirror.peers.learn(GROUP, MANIFEST)
    return node


@pytest.fixture
async def sources(nursery: trio.Nursery) -> list[GrowingSource]:
    found = [GrowingSource(number, dict(CONTENT)) for number in (1, 2, 3)]
    for each in found:
        await nursery.start(each.run)
    return found


class Pull:
    """A client that reads a body beside the test."""

    def __init__(self, node: Any, content: bytes) -> None:
        self.node = node
        self.content = content
        self.received = b""
        self.status = 0
        self.cut = False
        self.done = trio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(verify=False, base_url=self.node.url, trust_env=False, timeout=60) as client:
            try:
                async with client.stream("GET", path(self.content)) as response:
                    self.status = response.status_code
                    async for piece in response.aiter_raw():
                        self.received += piece
            except httpx.RemoteProtocolError:
                self.cut = True
        self.done.set()


async def until(condition: Any) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.01)


def losses(node: Any) -> list[tuple[str, Why]]:
    return [(report.lost, report.why) for _, report in node.router.reports if report.lost]
