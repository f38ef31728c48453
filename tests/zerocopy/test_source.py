"""Telling a slow source from a slow client."""

from __future__ import annotations

import socket

import pytest
import trio

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.relay import Relay
from spegel_consul.zerocopy.source import SourceLeft, SourceSlow, Throughput

MIB = 1 << 20


def gives(throughput: Throughput, rate: float, total: int, *, wait: float = 0.1) -> int:
    """Take ``total`` bytes at ``rate``, waiting so long each time; how many came."""
    left = total
    while left > 0:
        left = max(0, left - int(rate * wait))
        if left:
            throughput.waited(wait, left)
    return total


def test_a_slow_source_is_told_once_and_soon() -> None:
    throughput = Throughput(5.0, 2 * MIB)
    throughput.begin(100 * MIB)
    left = 100 * MIB
    with pytest.raises(SourceSlow, match=r"1\.19 MiB/s"):
        while True:
            left -= 125_000
            throughput.waited(0.1, left)
    assert left > 97 * MIB
    gives(throughput, 1.25e6, left)


@pytest.mark.parametrize("least", [0, 2 * MIB])
def test_a_drip_is_a_silence(least: int) -> None:
    throughput = Throughput(5.0, least)
    throughput.begin(MIB)
    if least:
        with pytest.raises(SourceSlow):
            gives(throughput, 1.0, MIB, wait=1.0)
    with pytest.raises(PeerError, match="1 bytes per second for 5 s") as failed:
        gives(throughput, 1.0, MIB, wait=1.0)
    assert failed.value.hung


def test_what_is_fast_enough_or_almost_there_or_not_to_be_judged_is_left_alone() -> None:
    for rate, least, total in ((2.1 * MIB, 2 * MIB, 100 * MIB), (MIB, 2 * MIB, int(2.9 * MIB)), (20_000, 0, 10 * MIB)):
        throughput = Throughput(5.0, least)
        throughput.begin(total)
        assert gives(throughput, rate, total) == total


def test_a_source_is_not_judged_by_the_one_before_it() -> None:
    throughput = Throughput(5.0, 2 * MIB)
    throughput.begin(100 * MIB)
    throughput.waited(1.9, 100 * MIB)
    throughput.begin(100 * MIB)
    throughput.waited(1.9, 100 * MIB - 1)


async def test_nobody_waits_for_a_source_while_the_client_is_what_is_slow() -> None:
    data = bytes(range(256)) * 300
    source, far = socket.socketpair()
    far.sendall(data)
    for each in (source, far):
        each.setblocking(False)
    sink, client = trio.socket.socketpair()
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    waits: list[float] = []

    class Watched(Throughput):
        def waited(self, seconds: float, left: int) -> None:
            waits.append(seconds)

    received = bytearray()
    with source, far, sink, client:
        relay = Relay(sink, Position(len(data)), None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.pull, source, Watched(1.0))
            while len(received) < len(data):
                await trio.sleep(0.001)
                received += await client.recv(3000)
        relay.close()
    assert received == data
    assert waits == []


async def test_a_transfer_leaves_its_source_where_it_waits() -> None:
    source, far = socket.socketpair()
    throughput = Throughput(60.0)
    throughput.begin(MIB)
    with source, far:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(SourceLeft):
                    await throughput.readable(source.fileno(), MIB)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            throughput.leave()
        with pytest.raises(SourceLeft):  # also one that did not wait when it was told
            await throughput.readable(source.fileno(), MIB)
        throughput.begin(MIB)
        far.sendall(b"x")
        await throughput.readable(source.fileno(), MIB)


def test_a_source_that_grows_may_be_slow_and_silent_for_longer() -> None:
    throughput = Throughput(5.0, 2 * MIB)
    throughput.begin(100 * MIB, growing_stall=8.0)
    assert throughput.stall == 8.0
    throughput.waited(7.9, 100 * MIB)
    with pytest.raises(PeerError):
        throughput.waited(0.2, 100 * MIB)
    throughput.begin(100 * MIB)
    assert throughput.stall == 5.0
    with pytest.raises(SourceSlow):
        gives(throughput, MIB, 100 * MIB)
