"""Streams come and go by the thousands while their connection stands."""

import pytest
import trio
import trio.testing
from conformance.router import eventually

from spegel_consul.ring.net.host import Stream
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create

STREAMS = 40


async def _echo(stream: Stream) -> None:
    stream.send(await stream.receive())
    stream.close()
    assert await stream.receive() == b""


@pytest.mark.parametrize("who_closes", ["both", "one resets"])
async def test_nothing_is_kept_of_a_stream_that_ended(nursery: trio.Nursery, who_closes: str) -> None:
    here, there = (Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)) for _ in range(2))
    there.serve("/echo", _echo)
    for host in (here, there):
        await nursery.start(host.run)
    peer = await here.dial("127.0.0.1", there.address.port)

    async def one() -> None:
        stream = await here.open(peer, (), "/echo")
        stream.send(b"hello")
        assert await stream.receive() == b"hello"
        if who_closes == "both":
            assert await stream.receive() == b""
            stream.close()
        else:
            stream.reset()

    for _ in range(STREAMS):
        await one()

    def kept() -> int:
        muxed = [each._muxed for host in (here, there) for each in host._connections[next(iter(host._connections))]]
        return sum(len(each.streams) + len(each.stream_events) + len(each.stream_buffers) for each in muxed)

    await eventually(lambda: kept() < STREAMS // 4)


async def test_many_times_a_window_passes_both_ways_in_small_and_large_pieces(nursery: trio.Nursery) -> None:
    here, there = (Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)) for _ in range(2))

    async def echo(stream: Stream) -> None:
        while data := await stream.receive():
            stream.send(data)
        stream.close()

    there.serve("/echo", echo)
    for host in (here, there):
        await nursery.start(host.run)
    peer = await here.dial("127.0.0.1", there.address.port)
    stream = await here.open(peer, (), "/echo")
    sent, received = bytearray(), bytearray()
    for number in range(60):
        piece = bytes([number]) * (7, 4000, 70_000)[number % 3]
        stream.send(piece)
        sent += piece
        while len(received) < len(sent):
            received += await stream.receive()
    assert received == sent
    assert len(sent) > 4 * (256 << 10)
    stream.close()
    assert await stream.receive() == b""


async def test_what_is_sent_at_once_and_what_waits_for_the_window_arrive_in_order(nursery: trio.Nursery) -> None:
    here, there = (Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)) for _ in range(2))
    received, read = bytearray(), trio.Event()

    async def sink(stream: Stream) -> None:
        await read.wait()
        while data := await stream.receive():
            received.extend(data)
        stream.close()

    there.serve("/sink", sink)
    for host in (here, there):
        await nursery.start(host.run)
    stream = await here.open(await here.dial("127.0.0.1", there.address.port), (), "/sink")
    sent = bytearray()
    for number in range(120):
        piece = number.to_bytes(2, "big") * 5000
        stream.send(piece)
        sent += piece
        if number == 60:
            read.set()
            await trio.testing.wait_all_tasks_blocked()
    stream.close()
    assert await stream.receive() == b""
    assert received == sent
