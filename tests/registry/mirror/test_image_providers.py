"""Small blobs of an image whose manifest came a moment ago: they are asked for without lookups of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry.mirror import mirror_peers

from ..conftest import head
from ..image import get

SMALL = [bytes([number]) * size for number, size in enumerate((10, 400_000, mirror_peers.UNSEARCHED))]
LARGE = bytes(mirror_peers.UNSEARCHED + 1)
LAYERS = [*SMALL, LARGE]
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"digest": Digest.of(b"{}"), "size": 2},
        "layers": [{"digest": Digest.of(layer), "size": len(layer)} for layer in LAYERS],
    }
).encode()


def path_of(content: bytes, repository: str = "library/app") -> str:
    kind = "manifests" if content == MANIFEST else "blobs"
    return f"/v2/{repository}/{kind}/{Digest.of(content)}?ns=docker.io"


# the ASGI path has no short cut
pytestmark = pytest.mark.parametrize("start_node", ["fast path"], indirect=True)


@pytest.fixture
async def pair(start_node: Any) -> Any:
    """A node that has the image, and one that knows only of the first."""
    holder, asker = await start_node(), await start_node()
    holder.store.add_image("docker.io/library/app:v2", MANIFEST)
    for content in (*LAYERS, b"unnamed"):
        holder.store.add_content(content)
    asker.router.knows(holder)
    return holder, asker


async def test_small_blobs_of_the_image_need_no_lookup(pair: Any) -> None:
    _, asker = pair
    for content in (MANIFEST, *LAYERS):
        assert (await get(asker, path_of(content))).content == content
    assert asker.router.asked == [Digest.of(MANIFEST), Digest.of(LARGE)]


async def test_a_blob_that_no_manifest_names_or_of_another_image_is_looked_up(pair: Any) -> None:
    _, asker = pair
    assert (await get(asker, path_of(MANIFEST))).content == MANIFEST
    assert (await get(asker, path_of(b"unnamed"))).content == b"unnamed"
    assert (await get(asker, path_of(SMALL[1], "library/other"))).content == SMALL[1]
    assert asker.router.asked == [Digest.of(MANIFEST), Digest.of(b"unnamed"), Digest.of(SMALL[1])]


async def test_a_provider_that_lacks_a_blob_of_the_image_costs_one_question(pair: Any, start_node: Any) -> None:
    holder, asker = pair
    partial = await start_node()
    partial.store.add_image("docker.io/library/app:v2", MANIFEST)
    asker.router.knows(partial)
    assert (await get(asker, path_of(MANIFEST))).content == MANIFEST
    asker.router.knows(holder)
    for content in SMALL:
        response = await get(asker, path_of(content))
        assert response.content == content
        assert response.headers["x-spegel-served-by"] == f"127.0.0.1:{holder.address[1]}"
    assert asker.router.asked == [Digest.of(MANIFEST), Digest.of(SMALL[0])]


async def test_a_provider_that_closes_its_connection_is_left(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    liar = await start_peer(head(200, len(MANIFEST)), MANIFEST, then="hang")
    asker.router.knows(liar.address)
    assert (await get(asker, path_of(MANIFEST))).content == MANIFEST
    asker.router.knows(holder)
    for content in SMALL:
        assert (await get(asker, path_of(content))).content == content
    assert asker.router.asked == [Digest.of(MANIFEST), Digest.of(SMALL[0])]


async def test_a_provider_that_fails_in_mid_body_is_left(pair: Any, nursery: trio.Nursery) -> None:
    holder, asker = pair
    requests: list[bytes] = []

    async def dying(stream: trio.SocketStream) -> None:
        async with stream:
            for body in (MANIFEST, SMALL[1][:300_000]):
                requests.append(await stream.receive_some())
                await stream.send_all(head(200, len(MANIFEST if body == MANIFEST else SMALL[1])) + body)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, dying, listeners)
    asker.router.knows(listeners[0].socket.getsockname())
    assert (await get(asker, path_of(MANIFEST))).content == MANIFEST
    asker.router.knows(holder)
    assert (await get(asker, path_of(SMALL[1]))).content == SMALL[1]
    assert len(requests) == 2
    known = asker.mirror.peers.recent.get("docker.io/library/app/")
    assert [provider.registry for provider in known] == [holder.address]
