# A machine that hangs keeps its connections.  Who gives it up drops the connection, and everything that waits on it has
# to be told, or the next question goes to a stream that is no more.

import socket
import struct

import pytest
import trio
import trio.testing

from spegel_consul.multiaddrs import Address
from spegel_consul.ring.dht.messages import Frames, Message, MessageType, decode, encode
from spegel_consul.ring.members.pipeline import Pipeline
from spegel_consul.ring.net.host import Replaced, Silent, Stream, StreamClosed, Unreachable
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create

ECHO = "/test/echo/1.0.0"
PING = encode(Message(MessageType.PING))


class Moody:
    """Answers each message with the same, unless it is silent."""

    def __init__(self) -> None:
        self.silent = False

    async def serve(self, stream: Stream) -> None:
        frames = Frames()
        while data := await stream.receive():
            for _ in frames.feed(data):
                if not self.silent:
                    stream.send(PING)


@pytest.fixture
def moody() -> Moody:
    return Moody()


@pytest.fixture
async def peer(nursery: trio.Nursery, moody: Moody) -> Libp2pHost:
    host = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))
    host.serve(ECHO, moody.serve)
    await nursery.start(host.run)
    return host


@pytest.fixture
async def host(nursery: trio.Nursery) -> Libp2pHost:
    host = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))
    await nursery.start(host.run)
    return host


async def test_at_whose_addresses_others_are_is_told_from_who_is_not_there(host: Libp2pHost, peer: Libp2pHost) -> None:
    gone = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)).id
    nobody = Address("127.0.0.1", 1)
    with pytest.raises(Replaced):
        await host.open(gone, [peer.address], ECHO)
    for addresses in ([nobody], [nobody, peer.address], []):
        with pytest.raises(Unreachable) as caught:
            await host.open(gone, addresses, ECHO)
        assert caught.type is Unreachable


async def test_who_does_not_answer_is_told_from_who_refuses(host: Libp2pHost) -> None:
    gone = Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0)).id
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1])
        with pytest.raises(Silent):
            await host.open(gone, [address, Address("127.0.0.1", 1)], ECHO)


async def test_who_reads_is_told_that_the_connection_was_dropped(host: Libp2pHost, peer: Libp2pHost) -> None:
    stream = await host.open(peer.id, [peer.address], ECHO)

    async def drop_it() -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        host.disconnect(peer.id)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop_it)
            with pytest.raises(StreamClosed):
                await stream.receive()
    with pytest.raises(StreamClosed):
        await stream.receive()


async def test_a_connection_that_breaks_within_a_message_is_no_end_of_its_stream(
    host: Libp2pHost, peer: Libp2pHost
) -> None:
    stream = await host.open(peer.id, [peer.address], ECHO)
    (far,) = peer._connections[host.id]
    (number,) = far._muxed.streams
    header = struct.pack("!BBHII", 0, 0, 0, number, 1000)
    far._muxed._session.put(header + b"a part of it")
    await trio.testing.wait_all_tasks_blocked(0.01)
    peer.disconnect(host.id)
    with trio.fail_after(30), pytest.raises(StreamClosed) as caught:
        await stream.receive()
    assert caught.type is StreamClosed
    with trio.fail_after(30):
        while host.is_connected(peer.id):
            await trio.sleep(0.01)


async def test_a_peer_that_hung_is_asked_over_a_new_connection(
    nursery: trio.Nursery, host: Libp2pHost, peer: Libp2pHost, moody: Moody
) -> None:
    pipeline = Pipeline(host, peer.id, lambda: [peer.address], ECHO, nursery.start_soon, decode)
    for _ in range(3):
        with trio.fail_after(5):
            await pipeline.ask(PING)
        moody.silent = True
        with trio.move_on_after(0.05) as waiting:
            await pipeline.ask(PING)
        assert waiting.cancelled_caught
        host.disconnect(peer.id)
        moody.silent = False
        with trio.fail_after(5):
            await pipeline.ask(PING)
