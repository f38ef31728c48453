"""Connections to peers that are kept for further requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from spegel_consul.http import peer_client
from spegel_consul.http.peer_client import PeerClient

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def answer(stream: trio.SocketStream) -> None:
    async with stream:
        async for _request in stream:
            await stream.send_all(ANSWER)


async def test_idle_connections_are_closed_though_no_request_follows(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_client, "_IDLE", 0.2)
    client, listeners = PeerClient(), await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    await nursery.start(client.run)
    await trio.testing.wait_all_tasks_blocked()
    before = open_files()

    async def ask() -> None:
        response = await client.request(address, "GET", "/", [])
        assert b"".join([piece async for piece in response.chunks()]) == b"OK"

    async with trio.open_nursery() as asking:
        for _ in range(5):
            asking.start_soon(ask)
    assert client.has_idle(address)
    assert len(client._idle[address]) == 5
    with trio.fail_after(5):
        while client._idle or open_files() > before:
            await trio.sleep(0.01)


async def test_a_connection_that_was_idle_for_too_long_is_none(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, listeners = PeerClient(), await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listeners[0].socket.getsockname()
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    (await client.request(address, "GET", "/", [])).discard()
    assert client.has_idle(address)
    monkeypatch.setattr(peer_client, "_IDLE", 0.0)
    assert not client.has_idle(address)
    client.close()
