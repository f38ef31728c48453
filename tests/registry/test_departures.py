"""Clients that leave while their request waits: it ends soon, on both paths."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.registry.mirror.providers.provider_cache import RecentProviders
from spegel_consul.ring.dht.claim_reports import Verdict, What

from .conftest import head
from .image import BLOB_PATH, LAYER, get

INTERIM = b"HTTP/1.1 103 Early Hints\r\n\r\n"


async def ask_and_leave(node: Any) -> None:
    stream = await trio.open_tcp_stream(*node.address[:2])
    await stream.send_all(f"GET {BLOB_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with trio.fail_after(5):
        while not node.mirror.traces.live:
            await trio.sleep(0.01)
    await trio.sleep(0.2)
    await stream.aclose()


@pytest.mark.parametrize("waits_for", ["a busy peer", "a source"])
async def test_a_request_whose_client_has_left_waits_no_longer(
    start_node: Any, start_peer: Any, waits_for: str
) -> None:
    node = await start_node(settings=MirrorSettings(follow=True))
    if waits_for == "a busy peer":
        peer = await start_peer(head(503, 0, "X-Spegel-Busy: 0.3"))
        node.router.knows(peer.address)
    else:
        peer = await start_peer(*[INTERIM, 0.5] * 60)

        async def keeper(group: object, report: object) -> Verdict:
            return Verdict(What.FOLLOW, (Provider("12D3KooWA", peer.address),), 0.5)

        node.router.keeper = keeper
    await ask_and_leave(node)
    with trio.fail_after(3):
        while node.mirror.traces.live:
            await trio.sleep(0.01)
    assert [trace.outcome for trace in node.mirror.traces.over] == ["gone"]


async def test_a_connection_that_closes_after_the_answer_is_no_departure(start_node: Any) -> None:
    """The lookup that named the peer may still go on then."""
    holder, asker = await start_node(), await start_node()
    holder.store.add_content(LAYER)

    asker.router.providers = [Provider("peer0", holder.address), None]
    for _ in range(5):
        asker.mirror.peers.recent = RecentProviders()
        assert (await get(asker, BLOB_PATH, connection="close")).content == LAYER
    with trio.fail_after(5):
        while asker.mirror.traces.live:
            await trio.sleep(0.01)
    assert [trace.outcome for trace in asker.mirror.traces.over] == ["hit"] * 5
