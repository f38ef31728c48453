"""A limit of bytes per second: in virtual time, and on sockets, which the kernel paces in real time."""

from __future__ import annotations

import hashlib
import math
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.pacing import _SO_MAX_PACING_RATE, BURST, Pace, TokenBucket
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.relay import Relay
from spegel_consul.zerocopy.send import send_file
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import Spool, SpoolSpace

MIB = 1 << 20


@given(
    st.floats(64 << 10, 1 << 40),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 1 << 24), st.integers(0, 1 << 24)), min_size=1, max_size=50),
)
def test_never_more_than_the_rate_and_a_burst(rate: float, steps: list[tuple[float, int, int]]) -> None:
    bucket, now, passed, began = TokenBucket(rate), 1000.0, 0, 1000.0
    for idle, count, back in steps:
        now += idle
        now += bucket.take(count, now)
        moved = count - min(back, count)
        bucket.give_back(count - moved)
        before, passed = passed, passed + moved
        # each take waits until what was taken before has passed
        assert before <= rate * (now - began + BURST) * (1 + 1e-6) + 1


def test_an_unused_limit_is_made_up_for_by_a_burst_and_no_more() -> None:
    bucket = TokenBucket(1000.0)
    assert bucket.take(1000, 0.0) == 0.0
    assert bucket.take(1, 50.0) == 0.0
    assert bucket.take(99, 50.0) == 0.0
    assert bucket.take(1, 50.0) == pytest.approx(0.0)
    assert bucket.take(1000, 50.0) == pytest.approx(0.001)
    assert bucket.take(1, 50.0) == pytest.approx(1.001)


async def test_several_transfers_share_the_limit_evenly(autojump_clock: trio.testing.MockClock) -> None:
    pace, moved = Pace(10 * MIB), [0] * 7

    async def move(number: int) -> None:
        while True:
            moved[number] += await pace.take(MIB)

    async with trio.open_nursery() as nursery:
        for number in range(len(moved)):
            nursery.start_soon(move, number)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert sum(moved) == pytest.approx(50 * MIB, rel=0.05)
    assert max(moved) < 1.1 * min(moved)


async def test_what_a_cancelled_transfer_took_is_given_back(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(MIB)
    for _ in range(1000):
        with trio.move_on_after(0.0001):
            await pace.take_all(MIB)
    began = trio.current_time()
    await pace.take_all(MIB)
    assert trio.current_time() - began < 1.5


async def test_bytes_without_a_wait_are_waited_for_by_others(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(MIB)
    pace.spend(3 * MIB)
    await pace.take(1)
    assert trio.current_time() >= 3 - BURST


async def test_a_file_is_sent_at_the_limit(tmp_path: Path) -> None:
    size = MIB
    (tmp_path / "file").write_bytes(bytes(size))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    pace, received = Pace(2 * MIB), 0
    paced: list[int] = []

    async def read() -> None:
        nonlocal received
        while received < size:
            received += len(await theirs.recv(1 << 20))
            paced.append(pacing_rate(ours))

    async with connected() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            began = trio.current_time()
            await send_file(ours, b"", fd, 0, size, lambda sent: None, pace)
            took = trio.current_time() - began
        assert pacing_rate(ours) > 1 << 40, "and the next answer on this connection may have no limit"
    os.close(fd)
    assert 0.5 - 2 * BURST < took < 0.8
    assert paced[0] == pace.rate * 5 // 4, "the kernel spreads the bytes of a step"


Pull = Callable[[trio.socket.SocketType, Position, Throughput, Path], Awaitable[None]]


async def relayed(source: trio.socket.SocketType, position: Position, throughput: Throughput, _: Path) -> None:
    async with connected() as (sink, client), trio.open_nursery() as nursery:
        nursery.start_soon(drain, client)
        relay = await Relay.start(sink, position, None)
        assert relay is not None
        await relay.pull(source, throughput)
        relay.close()
        sink.close()


async def drain(client: trio.socket.SocketType) -> None:
    while await client.recv(1 << 20):
        pass


async def spooled(source: trio.socket.SocketType, position: Position, throughput: Throughput, path: Path) -> None:
    spool = Spool(SpoolSpace(path), position, hashlib.sha256(), math.inf)
    assert await spool.start()
    await spool.pull(source, throughput)
    spool.close()


async def spooled_small(source: trio.socket.SocketType, position: Position, throughput: Throughput, path: Path) -> None:
    spool = SmallSpool(SpoolSpace(path), position, hashlib.sha256(), math.inf)
    await spool.pull(source, throughput)
    spool.close()


@pytest.mark.parametrize(("pull", "size"), [(relayed, 6 * MIB), (spooled, 6 * MIB), (spooled_small, MIB)])
async def test_bytes_are_taken_at_the_limit_and_the_source_is_not_called_slow(
    pull: Pull, size: int, tmp_path: Path
) -> None:
    throughput = Throughput(5.0, least=4 * size, pace=Pace(2 * size))
    throughput.begin(size)

    async with connected() as (source, peer), trio.open_nursery() as nursery:
        nursery.start_soon(send, peer, size)
        began = trio.current_time()
        await pull(source, Position(size), throughput, tmp_path)
        took = trio.current_time() - began
    assert 0.5 - 2 * BURST < took < 0.8


async def send(peer: trio.socket.SocketType, size: int) -> None:
    view = memoryview(bytes(size))
    while view:
        view = view[await peer.send(view) :]


@pytest.mark.parametrize("pull", [relayed, spooled, spooled_small])
async def test_bytes_that_have_not_come_are_given_back(pull: Pull, tmp_path: Path) -> None:
    pace, size = Pace(64 << 10), MIB
    throughput = Throughput(5.0, pace=pace)
    throughput.begin(size)

    async def drip() -> None:
        for _ in range(40):
            await peer.send(b"x")
            await trio.sleep(0.01)
        peer.shutdown(socket.SHUT_WR)

    async with connected() as (source, peer), trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        began = trio.current_time()
        with pytest.raises(PeerError, match="closed the connection"):
            await pulled(pull, source, size, throughput, tmp_path)
    assert trio.current_time() - began < 1.5, "40 steps of 8 KiB would take 5 s"
    began = trio.current_time()
    await pace.take(1000)
    assert trio.current_time() - began < 0.1


async def pulled(pull: Pull, source: trio.socket.SocketType, size: int, throughput: Throughput, path: Path) -> None:
    """Raise the failure of ``pull`` bare."""
    try:
        await pull(source, Position(size), throughput, path)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    with trio.socket.socket() as listener, trio.socket.socket() as client:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        await client.connect(listener.getsockname())
        server, _ = await listener.accept()
        with server:
            yield client, server


def pacing_rate(sock: Any) -> int:
    found: int = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, 8))[0]
    return found
