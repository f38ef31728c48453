"""How long a follower of a download waits, and for whom."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.oci.digest import Digest
from spegel_consul.oci.path import ContentRequest, parse_content_path
from spegel_consul.registry import growing
from spegel_consul.registry.mirror.followers import WAIT
from spegel_consul.ring.dht.claim_reports import What
from spegel_consul.zerocopy.send_growing import CHAIN_STALL, STALL
from tests.registry.growing_node import (
    LAYER,
    MIB,
    OTHER,
    followed,
    no_threads,
    node,
    passed,
    runtime_asks,
    start,
    status,
)

__all__ = ["no_threads", "node", "start"]


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
