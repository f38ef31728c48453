"""Peers that follow a download of this node's runtime: what they are sent, how long they wait, what ends it.

The downloads are files as containerd writes them. The clock jumps while all tasks wait, so files are read without
threads, which such a clock would overtake."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.media import OCI_MANIFEST
from spegel_consul.registry import growing
from spegel_consul.zerocopy.send_growing import STALL
from tests.registry.growing_node import (
    LAYER,
    MIB,
    OTHER,
    PEER,
    asked,
    followed,
    no_threads,
    node,
    passed,
    runtime_asks,
    start,
    status,
)

__all__ = ["no_threads", "node", "start"]


MANIFEST = json.dumps(
    {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {"digest": Digest.of(b"{}")}, "layers": []}
).encode()


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
