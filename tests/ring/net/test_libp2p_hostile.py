# What strangers can do to a node over TCP, before and after they have proved an identity.

import logging
import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
from conformance.router import eventually, find

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import PeerInfo, RingError
from spegel_consul.ring.dht.keys import dht_key
from spegel_consul.ring.dht.messages import (
    MemberReport,
    Message,
    MessageType,
    WirePeer,
    encode,
    encode_members,
    frame,
    uvarint,
)
from spegel_consul.ring.dht.protocol_ids import KAD, MEMBERS
from spegel_consul.ring.net import libp2p_host
from spegel_consul.ring.net.host import Stream
from spegel_consul.ring.net.libp2p_host import MAX_HALF_OPEN_PER_ADDRESS, Libp2pHost
from spegel_consul.ring.net.node_key import load_or_create
from spegel_consul.ring.router import KadRouter

JUNK = random.Random(1)  # each process that shares the tests must name them alike


class Victim:
    def __init__(self, host: Libp2pHost, router: KadRouter) -> None:
        self.host, self.router = host, router
        self.port = host.address.port

    async def still_works(self, friend: KadRouter) -> None:
        """A member finds what the victim has, and a newcomer can join through it."""
        assert [provider.peer_id for provider in await find(friend, "layer")] == [self.router.me.id]
        async with trio.open_nursery() as nursery:
            newcomer = KadRouter(_host(), registry=("127.0.0.1", 1))
            await nursery.start(newcomer.run)
            with trio.fail_after(30):  # it tries again, as the sidecar does, for this machine may be busy
                while not await newcomer.join([self.router.me]):
                    await trio.sleep(0.1)
            await eventually(lambda: newcomer.members())
            nursery.cancel_scope.cancel()


def _host() -> Libp2pHost:
    return Libp2pHost(load_or_create(None), bind=("127.0.0.1", 0))


@pytest.fixture
async def victim(nursery: trio.Nursery) -> Victim:
    host = _host()
    router = KadRouter(host, registry=("127.0.0.1", 5000))
    await nursery.start(router.run)
    await router.announce(["layer"])
    return Victim(host, router)


@pytest.fixture
async def friend(nursery: trio.Nursery, victim: Victim) -> KadRouter:
    router = KadRouter(_host(), registry=("127.0.0.1", 5001))
    await nursery.start(router.run)
    assert await router.join([victim.router.me]) == 1
    await eventually(lambda: not victim.router.unannounced)
    return router


@pytest.fixture
async def attacker(nursery: trio.Nursery) -> Libp2pHost:
    """A bare host: it authenticates, and then says what it likes."""
    host = _host()
    await nursery.start(host.run)
    return host


@pytest.fixture(autouse=True)
def _nothing_is_logged_because_of_a_peer(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    printed = capsys.readouterr().out
    assert "Traceback" not in printed
    assert not re.search(r"\[(warning|error|critical) *\]", printed)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x05\xff\xfe\xfd\xfc\x0a",  # a protocol name that is not UTF-8
        b"\x00" * 300,
        b"\xff" * 300,
        b"\x80" * 30,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff\xff" + JUNK.randbytes(4000),
        b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x00\x00\x00",
        b"\x13/multistream/1.0.0\n\x05\xff\xfe\xfd\xfc\x0a",
        b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 50,
    ],
)
async def test_garbage_instead_of_a_handshake(victim: Victim, friend: KadRouter, garbage: bytes) -> None:
    for _ in range(5):
        stream = await trio.open_tcp_stream("127.0.0.1", victim.port)
        await stream.send_all(garbage)
        with trio.move_on_after(0.02):
            await stream.receive_some()
        await stream.aclose()
    await victim.still_works(friend)


async def test_half_open_connections_do_not_keep_others_out(
    victim: Victim, friend: KadRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libp2p_host, "HANDSHAKE_TIMEOUT", 3600.0)  # none of them makes room by giving up
    sockets = [await trio.open_tcp_stream("127.0.0.1", victim.port) for _ in range(300)]
    await victim.still_works(friend)
    assert len(victim.host._half_open) <= MAX_HALF_OPEN_PER_ADDRESS
    for stream in sockets:
        await stream.aclose()


async def test_three_hundred_connections_one_after_another(victim: Victim, friend: KadRouter) -> None:
    for _ in range(300):
        host = _host()
        async with trio.open_nursery() as nursery:
            await nursery.start(host.run)
            assert await host.dial("127.0.0.1", victim.port) == victim.host.id
            nursery.cancel_scope.cancel()
    await eventually(lambda: len(victim.host.connected()) == 1)
    await victim.still_works(friend)


async def _raw_stream(attacker: Libp2pHost, victim: Victim, protocol: str, first: bytes) -> Stream:
    await attacker.dial("127.0.0.1", victim.port)
    stream = await attacker.open(victim.host.id, (), protocol)
    stream.send(first)
    return stream


@pytest.mark.parametrize("protocol", [KAD, MEMBERS])
@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 40,
        uvarint(1 << 33),
        frame(b""),
        frame(b"\x08\x63"),
        frame(b"\x08\x03"),
        frame(b"\x08\x03\x12\xff\xff\xff\xff\x0f"),
        frame(b"\x0a\x00"),
        frame(b"\x0a\x02\x0a\x00"),
        frame(JUNK.randbytes(2000)),
    ],
)
async def test_malformed_messages_end_only_their_stream(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, protocol: str, message: bytes
) -> None:
    stream = await _raw_stream(attacker, victim, protocol, message)
    with trio.fail_after(3):
        try:
            while await stream.receive():
                pass
        except RingError:
            pass
    assert attacker.connected() == (victim.host.id,)
    await victim.still_works(friend)


async def test_a_protocol_name_that_is_not_text(victim: Victim, friend: KadRouter, attacker: Libp2pHost) -> None:
    await attacker.dial("127.0.0.1", victim.port)
    connection = attacker._connection(victim.host.id)
    assert connection is not None
    for name in (b"\x05\xff\xfe\xfd\xfc\x0a", b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00" * 50):
        muxed = await connection._muxed.open_stream()
        await muxed.write(b"\x13/multistream/1.0.0\n" + name)
        muxed = await connection._muxed.open_stream()
        await muxed.write(name)
    await victim.still_works(friend)
    assert attacker.connected() == (victim.host.id,)


async def test_hundreds_of_streams_that_say_nothing(victim: Victim, friend: KadRouter, attacker: Libp2pHost) -> None:
    await attacker.dial("127.0.0.1", victim.port)

    async def idle() -> None:
        try:
            await attacker.open(victim.host.id, (), KAD)
        except RingError:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(200):
            nursery.start_soon(idle)
    await victim.still_works(friend)


async def test_lies_about_others_are_not_recorded(victim: Victim, friend: KadRouter, attacker: Libp2pHost) -> None:

    friend_id = friend._host.id
    lie = Message(MessageType.ADD_PROVIDER, dht_key("layer"), (), (WirePeer(friend_id, (b"\x04\x7f\0\0\1\x06\0\1",)),))
    stream = await _raw_stream(attacker, victim, KAD, encode(lie) + encode(Message(MessageType.PING)))
    with trio.fail_after(3):
        assert await stream.receive()
    assert victim.router.records == 0
    assert [member.addrs for member in victim.router.members() if member.id == friend.me.id] == [friend.me.addrs]


async def test_cancelled_lookups_and_streams_do_not_break_connections(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    host = friend._host
    before = host._connection(victim.host.id)  # type: ignore[attr-defined]
    assert before is not None

    async def talk() -> None:
        with friend.lookup("layer") as providers:
            async for _ in providers:
                break
        with suppress(RingError):  # so many streams at once are refused, which is no harm
            stream = await host.open(victim.host.id, (), KAD)
            stream.send(b"\x02\x08\x05")
            await stream.receive()
            stream.reset()

    for number in range(60):
        with trio.move_on_after(number * 0.0004):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(talk)
    assert host._connection(victim.host.id) is before  # type: ignore[attr-defined]
    assert not before.closed
    await victim.still_works(friend)


async def test_a_member_list_names_no_unusable_addresses(victim: Victim, attacker: Libp2pHost) -> None:

    unusable = [
        b"",
        b"\x04",
        b"\x04\0\0\0\0\x06\x13\x89",
        b"\x04\x7f\0\0\1\x06\0\0",
        os.urandom(40),
        b"\x04" * 500,
    ]
    reports = [MemberReport(WirePeer(os.urandom(38), (address,)), age) for address in unusable for age in (0, 1 << 69)]
    stream = await _raw_stream(attacker, victim, MEMBERS, encode_members(reports))
    with trio.fail_after(3):
        assert await stream.receive()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert victim.router.members() == ()
    assert await victim.router.join([PeerInfo(None, ("/ip4/127.0.0.1/tcp/1",))]) == 0


async def test_addresses_that_accept_and_say_nothing_delay_no_join(victim: Victim, nursery: trio.Nursery) -> None:
    """Somebody's members, sixty at once, behind each of which a socket accepts and that is all."""
    with socket.create_server(("0.0.0.0", 0), backlog=200) as mute:
        port = mute.getsockname()[1]
        newcomer = _host()
        await nursery.start(newcomer.run)
        forged = [Address(f"127.8.0.{number}", port) for number in range(1, 61)]

        async def reach(address: Address) -> None:
            with suppress(RingError):
                await newcomer.open(os.urandom(38), [address], KAD)

        async with trio.open_nursery() as waiting:
            for address in forged:
                waiting.start_soon(reach, address)
            await trio.sleep(0.3)
            with trio.fail_after(8):  # with a turn of five seconds for each it would be a minute
                assert await newcomer.dial("127.0.0.1", victim.port) == victim.host.id
            waiting.cancel_scope.cancel()
