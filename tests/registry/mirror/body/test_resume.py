"""A transfer whose peer dies, or a connection that has, goes on at another peer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from spegel_consul.http.peer_client import PeerClient, PeerResponse
from spegel_consul.peers import Provider
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings

from ...conftest import head
from ...image import BLOB_PATH, LAYER, STREAMED, get


@pytest.mark.parametrize("then", ["close", "hang"])
async def test_a_transfer_goes_on_at_another_peer(pair: Any, start_peer: Any, then: str) -> None:
    holder, asker = pair
    dying = await start_peer(head(200, len(LAYER)), LAYER[:100_000], then=then)
    asker.router.knows(dying.address, holder)
    with trio.fail_after(4):
        response = await get(asker, BLOB_PATH)
    assert response.content == LAYER
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == len(LAYER) - 100_000


async def test_a_transfer_from_a_remembered_peer_asks_the_ring_when_that_peer_dies(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    dying = await start_peer(head(200, len(LAYER)), LAYER[:100_000], 0.4)
    asker.router.knows(dying.address)
    assert (await get(asker, BLOB_PATH, "HEAD")).status_code == 200  # from now on it is remembered
    asker.router.knows(dying.address, holder)
    with trio.fail_after(4):
        assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_a_range_goes_on_at_another_peer(pair: Any, start_peer: Any) -> None:
    holder, asker = pair
    size = len(LAYER)
    dying = await start_peer(head(206, size - 1000, f"Content-Range: bytes 1000-{size - 1}/{size}"), LAYER[1000:50_000])
    asker.router.knows(dying.address, holder)
    assert (await get(asker, BLOB_PATH, range="bytes=1000-")).content == LAYER[1000:]


async def test_a_late_race_does_not_begin_with_the_peer_that_failed(
    start_node: Any, start_peer: Any, nursery: trio.Nursery
) -> None:
    holder, asker = await start_node(), await start_node(settings=MirrorSettings(attempts=1))
    holder.store.add_content(LAYER)
    served = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal served
        async with stream:
            while await stream.receive_some():
                served += 1
                await stream.send_all(head(200, len(LAYER)) + (LAYER if served == 1 else LAYER[:500_000]))
                if served > 1:
                    return

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    asker.router.knows(listeners[0].socket.getsockname())
    assert (await get(asker, BLOB_PATH)).content == LAYER
    asker.router.knows(holder)
    with trio.fail_after(5):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    nursery.cancel_scope.cancel()


async def test_a_transfer_that_nobody_can_complete_is_cut(start_node: Any, start_peer: Any) -> None:
    node = await start_node(settings=STREAMED)
    dying = await start_peer(head(200, len(LAYER)), LAYER[:1000])
    node.router.knows(dying.address)
    with pytest.raises(httpx.RemoteProtocolError), trio.fail_after(5):
        await get(node, BLOB_PATH)


@pytest.mark.parametrize(
    "second",
    [
        (head(200, len(LAYER)), LAYER[:200_000]),
        (head(200, len(LAYER)), LAYER[:1], 60.0),
        (head(404, 0),),
        (0.5, head(200, len(LAYER)), LAYER),
        (60.0,),
        (),
        (b"what?\r\n\r\n",),
    ],
    ids=["dies", "stalls", "lost it", "is slow", "hangs", "closes", "babbles"],
)
async def test_a_peer_that_had_it_a_moment_ago_and_fails_over_the_same_connection(
    pair: Any, nursery: trio.Nursery, second: tuple[bytes | float, ...]
) -> None:
    holder, asker = pair
    connections = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal connections
        connections += 1
        parts: tuple[bytes | float, ...] = (head(200, len(LAYER)), LAYER)
        async with stream:
            while await stream.receive_some():
                try:
                    for part in parts:
                        if isinstance(part, bytes):
                            await stream.send_all(part)
                        else:
                            await trio.sleep(part)
                except trio.BrokenResourceError:
                    return
                if parts is second:
                    return
                parts = second

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    asker.router.knows(listeners[0].socket.getsockname())
    assert (await get(asker, BLOB_PATH)).content == LAYER
    assert connections == 1
    asker.router.knows(listeners[0].socket.getsockname(), holder)
    with trio.fail_after(5):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    if asker.fast_path is not None:
        assert asker.fast_path.taken == 2
    nursery.cancel_scope.cancel()


async def test_connections_to_peers_are_kept_and_stale_ones_replaced(pair: Any, start_node: Any) -> None:
    holder, asker = pair
    for _ in range(3):
        assert (await get(asker, BLOB_PATH)).content == LAYER
    holder.stop.set()
    again = await start_node()
    again.store.add_content(LAYER)
    asker.router.providers = [Provider("old", holder.address), Provider("new", again.address)]
    assert (await get(asker, BLOB_PATH)).content == LAYER


async def test_an_answer_that_comes_too_late_is_not_used_for_other_bytes(
    pair: Any, start_peer: Any, start_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers in the same instant: the second one can't be cancelled any more, and is for bytes that were sent."""
    holder, _ = pair
    size = len(LAYER)
    asker = await start_node(settings=MirrorSettings(hedge=0.0))
    dying = await start_peer(head(206, size - 1000, f"Content-Range: bytes 1000-{size - 1}/{size}"), LAYER[1000:5000])
    asker.router.knows(dying.address, holder)
    request, arrived, gates = PeerClient.request, [], {dying.address: trio.Event(), holder.address: trio.Event()}

    async def gated(self: PeerClient, address: tuple[str, int], *rest: Any, **options: Any) -> PeerResponse:
        response = await request(self, address, *rest, **options)
        gate = gates.get(address)
        if gate is not None:
            arrived.append(address)
            await gate.wait()
        return response

    monkeypatch.setattr(PeerClient, "request", gated)
    async with trio.open_nursery() as nursery:

        async def open_gates() -> None:
            with trio.fail_after(5):
                while len(arrived) < 2:
                    await trio.sleep(0.001)
            first, second = gates[dying.address], gates[holder.address]
            gates.clear()
            first.set()
            await trio.lowlevel.checkpoint()
            second.set()

        nursery.start_soon(open_gates)
        response = await get(asker, BLOB_PATH, range="bytes=1000-")
    assert response.content == LAYER[1000:]


@pytest.mark.parametrize("knew", ["another", "one that had it not yet"])
async def test_a_node_that_has_got_it_meanwhile_goes_on(start_node: Any, start_peer: Any, knew: str) -> None:
    """The lookup at the start named the nodes of that moment."""
    holder, asker = await start_node(), await start_node(settings=STREAMED)
    dying = await start_peer(head(200, len(LAYER)), LAYER[:100_000], 0.4)
    asker.router.knows(*([holder] if knew != "another" else []), dying.address)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def complete() -> None:
                while not dying.requests:
                    await trio.sleep(0.01)
                holder.store.add_content(LAYER)
                asker.router.knows(dying.address, holder)

            nursery.start_soon(complete)
            assert (await get(asker, BLOB_PATH)).content == LAYER
    assert asker.metric("spegel_transfers_cut_total") == 0
