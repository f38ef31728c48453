"""Floods on the streams of a connection: what they get is bounded."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from conformance.router import eventually
from ring.net.test_libp2p_hostile import Victim, attacker, friend, victim

from spegel_consul.peers import RingError
from spegel_consul.ring.net.libp2p import muxer
from spegel_consul.ring.net.libp2p import stream as muxed_stream
from spegel_consul.ring.net.libp2p.peer_connection import MAX_INBOUND_STREAMS
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.router import KadRouter
from tests.ring.net.libp2p_floods import WITHIN

__all__ = ["attacker", "friend", "victim"]


async def test_streams_that_the_peer_does_not_end_count_until_they_are_reset(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muxed_stream, "FIN_TIMEOUT", 1.0)
    await attacker.dial("127.0.0.1", victim.port)
    for _ in range(MAX_INBOUND_STREAMS + 20):
        with suppress(RingError):
            stream = await attacker.open(victim.host.id, (), "/ipfs/id/1.0.0")
            with trio.move_on_after(0.5):
                while await stream.receive():
                    pass
    (connection,) = victim.host._connections[attacker.id]
    assert len(connection._muxed.streams) <= MAX_INBOUND_STREAMS
    await eventually(lambda: not connection._muxed.streams and not connection._inbound_streams, WITHIN)
    await victim.still_works(friend)


async def test_who_sends_more_than_it_was_granted_loses_the_connection(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    async def deaf(stream: object) -> None:
        await trio.sleep_forever()

    victim.host.serve("/deaf", deaf)
    await attacker.dial("127.0.0.1", victim.port)
    stream = await attacker.open(victim.host.id, (), "/deaf")
    muxed = stream._muxed  # type: ignore[attr-defined]
    (connection,) = victim.host._connections[attacker.id]
    most = 0
    with trio.fail_after(WITHIN), suppress(Exception):
        for _ in range(32):
            muxed.send_window = 1 << 40
            await muxed.write(bytes(256 << 10))
            most = max(most, sum(map(len, connection._muxed.stream_buffers.values())))
            await trio.sleep(0.02)
            if connection.closed:
                break
    assert connection.closed
    assert 0 < most < 3 << 19, "the largest window, and slack"
    assert not connection._muxed.stream_buffers
    await victim.still_works(friend)


async def test_many_streams_that_nobody_reads_are_bounded_together(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    """None of them has more than it was granted, with the slack; together they have more than a connection may."""

    async def deaf(stream: object) -> None:
        await trio.sleep_forever()

    victim.host.serve("/deaf", deaf)
    await attacker.dial("127.0.0.1", victim.port)
    (connection,) = victim.host._connections[attacker.id]
    buffers, most, sent = connection._muxed.stream_buffers, 0, 0
    with suppress(Exception), trio.fail_after(60):
        for _ in range(MAX_INBOUND_STREAMS - 1):
            stream = await attacker.open(victim.host.id, (), "/deaf")
            muxed = stream._muxed  # type: ignore[attr-defined]
            muxed.send_window = 1 << 40
            for _ in range(3):
                await muxed.write(bytes(100 << 10))
                sent += 100 << 10
                await trio.sleep(0)
                most = max(most, sum(map(len, buffers.values())))
    await eventually(lambda: connection.closed, WITHIN)
    assert sent > muxer.RECEIVE_BUFFER
    assert muxer.RECEIVE_BUFFER * 0.8 < most <= muxer.RECEIVE_BUFFER
    assert not connection._muxed.stream_buffers
    await victim.still_works(friend)


async def test_what_waits_on_a_stream_that_is_reset_is_dropped(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost
) -> None:
    await attacker.dial("127.0.0.1", victim.port)
    ours, (theirs,) = attacker._connection(victim.host.id), victim.host._connections[attacker.id]
    assert ours is not None
    for _ in range(20):
        muxed = await ours._muxed.open_stream()
        await muxed.write(b"\x05\xff\xfe\xfd\xfc\x0a" + bytes(100_000))
    await trio.sleep(0.5)
    assert not theirs.closed
    await eventually(lambda: not theirs._muxed.streams and not theirs._muxed.stream_buffers, WITHIN)
    await victim.still_works(friend)
