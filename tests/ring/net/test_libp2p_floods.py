"""Floods by peers that have proved an identity: what they get is bounded, and the others go on."""

from __future__ import annotations

import os
import socket
import statistics
import struct
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import trio
from conformance.router import eventually, find
from ring.net.test_libp2p_hostile import Victim, _host, _raw_stream, attacker, friend, victim
from structlog.testing import capture_logs

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import RingError
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
from spegel_consul.ring.dht.records import Records
from spegel_consul.ring.members.ban_list import LIMIT
from spegel_consul.ring.net import libp2p_host
from spegel_consul.ring.net.libp2p import stream as muxed_stream
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.protocol_server import _SLICE as SLICE
from spegel_consul.ring.router import KadRouter
from tests.ring.net.libp2p_floods import PING, WITHIN

__all__ = ["attacker", "friend", "victim"]


def announcement(attacker: Libp2pHost, key: bytes) -> bytes:
    me = WirePeer(attacker.id, (Address("127.0.0.1", 1).encode(),))
    return encode(Message(MessageType.ADD_PROVIDER, key, (), (me,)))


async def test_who_breaks_the_protocol_again_and_again_is_shut_out(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    with capture_logs() as logs:
        await attacker.dial("127.0.0.1", victim.port)
        for _ in range(LIMIT):
            stream = await attacker.open(victim.host.id, (), KAD)
            stream.send(frame(b"\x08\x63"))
            with suppress(RingError), trio.fail_after(WITHIN):
                while await stream.receive():
                    pass
        await eventually(lambda: victim.host.id not in attacker.connected(), WITHIN)
        for _ in range(5):
            with pytest.raises(RingError), trio.fail_after(WITHIN):
                await attacker.dial("127.0.0.1", victim.port)
                await attacker.identify(victim.host.id)
    assert [entry["event"] for entry in logs].count("ring_peer_shut_out") == 1
    await victim.still_works(friend)


async def test_a_peer_that_announces_without_end_gets_its_share_and_the_others_are_heard(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, nursery: trio.Nursery
) -> None:
    victim.router._records._capacity_per_peer = 2000
    flood = [b"\x12\x20" + struct.pack("!Q", number) + bytes(24) for number in range(40_000)]
    stream = await _raw_stream(attacker, victim, KAD, PING)

    async def pour() -> None:
        for start in range(0, len(flood), 1000):
            stream.send(b"".join(announcement(attacker, key) for key in flood[start : start + 1000]))
            while len(stream._out._bytes) > 500_000:  # type: ignore[attr-defined]
                await trio.sleep(0.001)

    nursery.start_soon(pour)
    taken, offered = [], 0
    real = victim.router._records.add

    def count(*args: Any) -> bool:
        nonlocal offered
        offered += 1
        return real(*args)

    victim.router._records.add = count  # type: ignore[method-assign]
    await eventually(lambda: offered, WITHIN)
    for _ in range(30):
        before = offered
        assert [provider.peer_id for provider in await find(friend, "layer")] == [victim.router.me.id]
        taken.append(offered - before)
        await trio.sleep(0.01)
    assert statistics.median(taken) <= 10 * SLICE, "a question waits for some slices of the flood, not for all of it"
    assert offered < len(flood), "the flood went on meanwhile"
    await eventually(lambda: victim.router.records == 2000, WITHIN)
    await victim.still_works(friend)
    assert victim.router.records <= 2000 + 10


async def test_keys_that_nobody_can_ask_for_are_not_kept(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    before = victim.router.records
    useless = [b"x", b"\x12\x20short", b"\x12\x20" + bytes(33), b"\x11\x14" + bytes(32), os.urandom(80)]
    stream = await _raw_stream(attacker, victim, KAD, b"".join(announcement(attacker, key) for key in useless) + PING)
    with trio.fail_after(WITHIN):
        assert await stream.receive()
    assert victim.router.records == before
    stream.send(announcement(attacker, dht_key("of use")) + PING)
    with trio.fail_after(WITHIN):
        assert await stream.receive()
    assert victim.router.records == before + 1


async def test_who_asks_and_does_not_read_loses_the_stream_and_costs_little(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muxed_stream, "STREAM_BUFFER", 100_000)
    question = encode(Message(MessageType.FIND_NODE, attacker.id))
    stream = await _raw_stream(attacker, victim, KAD, PING)
    await eventually(lambda: victim.router._service._inbound.get(attacker.id))
    with trio.fail_after(WITHIN):
        while victim.router._service._inbound.get(attacker.id):
            if len(stream._out._bytes) < 50_000:  # type: ignore[attr-defined]
                with suppress(RingError):  # the victim has just reset it
                    stream.send(question * 300)
            await trio.sleep(0.005)
    await victim.still_works(friend)


async def test_connections_of_one_address_are_bounded(
    victim: Victim, friend: KadRouter, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libp2p_host, "MAX_INBOUND_PER_ADDRESS", 20)
    async with trio.open_nursery() as crowd:
        for _ in range(40):
            host = _host()
            await crowd.start(host.run)
            try:
                await host.dial("127.0.0.1", victim.port)
            except RingError:
                pass
        await trio.sleep(0.1)
        assert len(victim.host.connected()) <= 20
        assert [provider.peer_id for provider in await find(friend, "layer")] == [victim.router.me.id]
        crowd.cancel_scope.cancel()
    await eventually(lambda: len(victim.host.connected()) == 1)
    await victim.still_works(friend)
    assert victim.host._inbound.total() <= 2


async def test_a_thousand_connections_at_once(
    victim: Victim, friend: KadRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libp2p_host, "HANDSHAKE_TIMEOUT", 3600.0)  # none of them makes room by giving up
    with ExitStack() as sockets:
        for _ in range(1000):
            sock = sockets.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", victim.port))
        await trio.sleep(0.2)
        await victim.still_works(friend)
        assert len(victim.host._half_open) <= libp2p_host.MAX_HALF_OPEN_PER_ADDRESS


async def test_a_list_that_says_that_others_are_here_is_not_followed(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    strangers = [b"\x00\x24\x08\x01\x12\x20" + os.urandom(32) for _ in range(50)]
    here = victim.host.address.encode()
    reports = [MemberReport(WirePeer(stranger, (here,)), 0) for stranger in strangers]
    stream = await _raw_stream(attacker, victim, MEMBERS, encode_members(reports))
    with trio.fail_after(WITHIN):
        while await stream.receive():
            pass
    await trio.sleep(0.1)
    assert {member.id for member in victim.router.members()} == {friend.me.id}
    assert len(victim.router._members) == 1
    await victim.still_works(friend)


def test_loopback_is_no_address_of_a_peer_for_who_has_another() -> None:
    from sim.network import SimNetwork

    router = KadRouter(SimNetwork().host(), registry=("10.0.0.1", 5000))
    said = WirePeer(b"\x00\x24\x08\x01\x12\x20" + bytes(32), (Address("127.0.0.1", 5001).encode(),))
    assert router._membership.contact(said).routers == ()


def test_a_million_records_of_one_peer_are_its_share_and_no_more() -> None:
    records = Records(capacity_per_peer=20_000)
    kept = sum(records.add(struct.pack("!Q", number), b"flood", 0) for number in range(100_000))
    assert (kept, len(records)) == (20_000, 20_000)
    assert records.add(b"other", b"peer", 0)
    assert records.is_full_of(b"flood")
    assert not records.is_full_of(b"peer")


def test_a_record_is_only_kept_by_one_of_those_near_to_its_key() -> None:
    from sim.network import SimNetwork

    from spegel_consul.ring.dht.keys import position

    router = KadRouter(SimNetwork().host(), registry=("10.0.0.1", 5000))
    peers = [b"\x00\x24\x08\x01\x12\x20" + number.to_bytes(32, "big") for number in range(1000, 1300)]
    for peer in peers:
        router._members.learn(Contact(peer, (Address("10.0.9.9", 5001),)), 0)
    me = position(router._host.id)
    keys = [dht_key(f"{number}") for number in range(300)]
    kept = [key for key in keys if router._answers._may_be_asked_for(key)]
    for key in keys:
        nearer = sum(position(peer) ^ position(key) < me ^ position(key) for peer in peers)
        assert (key in kept) == (nearer < 60)
    assert 0 < len(kept) < 150


async def test_a_long_list_of_strangers_neither_stops_the_loop_nor_keeps_others_out(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    strangers = [
        WirePeer(b"\x00\x24\x08\x01\x12\x20" + os.urandom(32), (Address("127.0.0.1", 1 + number % 9).encode(),))
        for number in range(8192)
    ]
    rounds = 0

    async def others() -> None:
        nonlocal rounds
        while True:
            await trio.lowlevel.checkpoint()
            rounds += 1

    # straight into the part that learns, so that nothing but its own checkpoints counts
    body = encode_members(MemberReport(stranger, 0) for stranger in strangers)
    body = body[len(uvarint(len(body))) :]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await trio.lowlevel.checkpoint()
        before = rounds
        await victim.router._membership.exchange.merge(attacker.id, body)
        assert rounds - before > 100
        nursery.cancel_scope.cancel()
    table = victim.router._members
    assert len(table) < 2500
    for stranger in strangers[-2500:]:
        table.learn(victim.router._membership.contact(stranger), trio.current_time(), source=os.urandom(8))
    assert len(table) == 4096
    await victim.still_works(friend)


async def test_member_lists_are_given_at_a_pace(victim: Victim, friend: KadRouter, attacker: Libp2pHost) -> None:
    given = 0
    for _ in range(8):
        with suppress(RingError), trio.fail_after(WITHIN):
            stream = await _raw_stream(attacker, victim, MEMBERS, encode_members([]))
            given += bool(await stream.receive())
            stream.reset()
    assert given in (3, 4)
    await victim.still_works(friend)


async def test_a_stranger_is_asked_once_who_it_is(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def mute(stream: object) -> None:
        nonlocal asked
        asked += 1
        await trio.sleep_forever()

    attacker._handlers["/ipfs/id/1.0.0"] = mute
    await attacker.dial("127.0.0.1", victim.port)
    for _ in range(30):
        stream = await attacker.open(victim.host.id, (), KAD)
        stream.close()
        with suppress(RingError):
            await stream.receive()
    await trio.sleep(0.5)
    assert asked == 1
    await victim.still_works(friend)


async def test_what_breaks_while_the_host_ends_stays_in_its_connection(attacker: Libp2pHost) -> None:
    host, scope = _host(), trio.CancelScope()

    async def break_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("late")

    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await host.run(task_status=task_status)

        await nursery.start(run)
        connection = host._connection(await host.dial("127.0.0.1", attacker.address.port))
        assert connection is not None
        connection.spawn(break_late)
        await trio.sleep(0.05)
        scope.cancel()
    assert connection.closed
