"""Streams come and go by the thousands while their connection stands."""

import pytest
import trio
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
