"""Clients that want the same blob share one fetch and one file; other machines have a share of the space each."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from spegel_consul.http.peer_client import PeerLimits
from spegel_consul.zerocopy import spool

from ...conftest import head
from ...image import BLOB_PATH, DIGEST, LAYER
from .test_body import state
from .test_held import results

SLOW = 80
REMOTE = "127.0.0.2"
BEGUN = 400_000


class Client:
    """One connection that asks for a blob and reads as much as a test wants."""

    def __init__(self) -> None:
        self.sock = trio.socket.socket()
        self.received = bytearray()

    async def ask(self, node: Any, path: str, source: str) -> None:
        self.sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 8192)
        await self.sock.bind((source, 0))
        await self.sock.connect(node.address)
        await self.sock.send(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())

    async def read(self, enough: int) -> None:
        while len(self.received) < enough and (data := await self.sock.recv(1 << 16)):
            self.received += data

    async def body(self) -> bytearray:
        await self.read(1 << 62)
        return self.received.partition(b"\r\n\r\n")[2]


Ask = Callable[..., Awaitable[Client]]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    """Makes clients of a node, which are gone when the test is over."""
    clients = []

    async def asked(node: Any, path: str = BLOB_PATH, *, source: str = "127.0.0.1") -> Client:
        clients.append(Client())
        await clients[-1].ask(node, path, source)
        return clients[-1]

    yield asked
    for client in clients:
        client.sock.close()


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)


def spool_bytes() -> tuple[int, int]:
    """How many unnamed files are open, and how many bytes they have together."""
    files = {}
    for each in Path("/proc/self/fd").iterdir():
        try:
            status, target = each.stat(), str(each.readlink())
        except OSError:
            continue
        if "(deleted)" in target and status.st_size and status.st_nlink == 0:
            files[status.st_dev, status.st_ino] = status.st_size
    return len(files), sum(files.values())


@pytest.fixture
async def gated(start_node: Any, nursery: trio.Nursery) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Starts a node, and a peer that sends the beginning of a body, and the rest when the gate is opened."""
    stop = trio.CancelScope()

    async def start(rest: bytes = LAYER[BEGUN:]) -> Any:
        node, gate, asked = await start_node(), trio.Event(), []
        node.mirror.peers.client.limits = PeerLimits(stall=60.0)

        async def answer(stream: trio.SocketStream) -> None:
            async with stream:
                asked.append(await stream.receive_some())
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(head(200, len(LAYER)) + LAYER[:BEGUN])
                    await gate.wait()
                    await stream.send_all(rest)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def serve() -> None:
            with stop:
                await trio.serve_listeners(answer, listeners)

        nursery.start_soon(serve)
        node.router.knows(listeners[0].socket.getsockname())
        return node, gate, asked

    yield start
    stop.cancel()


async def all_wait(ask: Ask, node: Any, count: int) -> list[Client]:
    """So many clients that wait for one body."""
    clients = [await ask(node)]
    await until(lambda: node.mirror.peers.held_bodies.get(DIGEST) is not None)
    holding = node.mirror.peers.held_bodies.get(DIGEST)
    while len(clients) < count:
        clients.append(await ask(node))
        await until(lambda: len(holding.users) == len(clients))
    return clients


async def test_one_fetch_for_all_that_ask_while_it_is_held(ask: Ask, gated: Any) -> None:
    node, gate, asked = await gated()
    clients = await all_wait(ask, node, 10)
    gate.set()
    for client in clients:
        assert await client.body() == LAYER
    assert len(asked) == 1
    assert results(node) == {"verified": 1}
    await until(
        lambda: node.mirror.peers.held_bodies.get(DIGEST) is None and node.mirror.peers.spool_space.promised == 0
    )


@pytest.mark.parametrize("leaving", [1, 4])
async def test_it_goes_on_when_those_who_began_it_leave(ask: Ask, gated: Any, leaving: int) -> None:
    node, gate, asked = await gated()
    clients = await all_wait(ask, node, 5)
    holding = node.mirror.peers.held_bodies.get(DIGEST)
    for client in clients[:leaving]:
        client.sock.close()
    await until(lambda: len(holding.users) < 5)
    gate.set()
    for client in clients[leaving:]:
        assert await client.body() == LAYER
    assert len(asked) == 1
    assert results(node) == {"verified": 1}


async def test_it_ends_when_nobody_waits(ask: Ask, gated: Any) -> None:
    node, _, _ = await gated()
    for client in await all_wait(ask, node, 5):
        client.sock.close()
    await until(
        lambda: node.mirror.peers.held_bodies.get(DIGEST) is None and node.mirror.peers.spool_space.promised == 0
    )
    assert results(node) == {"failed": 1}


async def test_all_hear_that_it_failed(ask: Ask, gated: Any) -> None:
    node, gate, asked = await gated(bytes(len(LAYER) - BEGUN))
    clients = await all_wait(ask, node, 5)
    gate.set()
    for client in clients:
        await client.read(1 << 62)
        assert client.received.startswith(b"HTTP/1.1 404")
    assert (len(asked), results(node)) == (1, {"failed": 1})


@pytest.mark.parametrize("name", ["late", "full"])
async def test_what_ends_early_is_sent_whole_to_each(
    ask: Ask, gated: Any, start_node: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    holder = await start_node()
    holder.store.file(holder.store.add_content(LAYER))  # now, while files may be as large as that
    with state(monkeypatch, name):
        node, gate, _ = await gated()
        clients = await all_wait(ask, node, 4)
        node.router.knows(holder)
        gate.set()
        for client in clients:
            assert await client.body() == LAYER
    assert results(node) in ({name: 1}, {"verified": 1})
    assert node.metric("spegel_transfers_cut_total") == 0
    await until(lambda: node.mirror.peers.spool_space.promised == 0)


async def test_slow_readers_share_one_file(
    ask: Ask, pair: Any, record_property: Callable[[str, object], None], request: pytest.FixtureRequest
) -> None:
    holder, node = pair
    blob = LAYER * 3  # more than what sockets take
    path = f"/v2/library/app/blobs/{holder.store.add_content(blob)}?ns=docker.io"
    clients, before = [], spool_bytes()
    for _ in range(SLOW):
        clients.append(await ask(node, path))
        await clients[-1].read(1)
    assert all(client.received.startswith(b"HTTP/1.1 200") for client in clients)
    files, size = (after - earlier for after, earlier in zip(spool_bytes(), before, strict=True))
    title, header = "Spools of slow readers", ["readers of one blob of 6.8 MB", "files", "spool bytes", "per reader"]
    row = [f"{SLOW}, {request.node.callspec.params['start_node']}", str(files), f"{size:,}", f"{size // SLOW:,}"]
    record_property("table", (title, header, row))
    assert (files, size) == (1, len(blob))
    assert node.mirror.peers.spool_space.promised == len(blob)
    assert holder.metric("spegel_served_bytes_total", {"source": "own"}) == len(blob)
    for client in clients[2:]:
        client.sock.close()
    for client in clients[:2]:
        assert await client.body() == blob
    await until(lambda: node.mirror.peers.spool_space.promised == 0 and spool_bytes() == before)


async def test_another_machine_has_a_share_and_this_one_all(
    ask: Ask, pair: Any, start_node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space for sixteen blobs: four for one address, eight for all others, and as many more for this machine."""
    holder, node = pair
    blobs = [bytes([number]) + LAYER * 3 for number in range(14)]
    paths = [f"/v2/library/app/blobs/{holder.store.add_content(blob)}?ns=docker.io" for blob in blobs]
    free = spool._SHARE * 16 * len(blobs[0])
    monkeypatch.setattr(spool.os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    clients = []
    for path in paths[:6]:  # one that does not read
        clients.append(await ask(node, path, source=REMOTE))
        await clients[-1].read(1)
    assert results(node) == {"verified": 4, "full": 2}
    for path in paths[6:12]:
        clients.append(await ask(node, path, source="127.0.0.3"))
        await clients[-1].read(1)
    assert results(node) == {"verified": 8, "full": 4}
    for path in paths[12:]:
        clients.append(await ask(node, path))
        await clients[-1].read(1)
    assert results(node) == {"verified": 10, "full": 4}
    assert node.mirror.peers.spool_space.by_client[spool.OWN] == 2 * len(blobs[0])
    for client, blob in zip(clients, blobs, strict=True):
        assert await client.body() == blob
    await until(lambda: not node.mirror.peers.spool_space.by_client)


async def test_the_file_counts_for_the_one_that_still_reads(ask: Ask, pair: Any) -> None:
    holder, node = pair
    blob = LAYER * 3
    path = f"/v2/library/app/blobs/{holder.store.add_content(blob)}?ns=docker.io"
    first = await ask(node, path, source=REMOTE)
    await first.read(1)
    second = await ask(node, path)
    await second.read(1)
    assert node.mirror.peers.spool_space.by_client == {REMOTE: len(blob)}
    first.sock.close()
    await until(lambda: node.mirror.peers.spool_space.by_client == {spool.OWN: len(blob)})
    assert await second.body() == blob


async def test_one_without_a_share_does_not_keep_this_machine_from_verified_bytes(
    ask: Ask, gated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine, whose share is too small, begins; this one joins before the first byte has come."""
    monkeypatch.setattr(sys.modules[__name__], "BEGUN", 0)
    free = spool._SHARE * len(LAYER)
    monkeypatch.setattr(spool.os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    node, gate, _ = await gated(LAYER)
    clients = [await ask(node, source=REMOTE)]
    await until(lambda: bool((holding := node.mirror.peers.held_bodies.get(DIGEST)) and holding.spool))
    assert node.mirror.peers.spool_space.by_client == {REMOTE: len(LAYER)}
    holding = node.mirror.peers.held_bodies.get(DIGEST)
    clients.append(await ask(node))
    await until(lambda: len(holding.users) == 2)
    assert node.mirror.peers.spool_space.by_client == {spool.OWN: len(LAYER)}
    gate.set()
    for client in clients:
        assert await client.body() == LAYER
    assert results(node) == {"verified": 1}
    await until(lambda: not node.mirror.peers.spool_space.by_client)
