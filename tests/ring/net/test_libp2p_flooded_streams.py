"""Floods on the streams of a connection: what they get is bounded."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from conformance.router import eventually
from ring.net.test_libp2p_hostile import Victim, _raw_stream, attacker, friend, victim

from spegel_consul.peers import RingError
from spegel_consul.ring.dht.messages import Frames, encode_withdrawal
from spegel_consul.ring.dht.protocol_ids import KAD, WITHDRAW
from spegel_consul.ring.net.libp2p import muxer
from spegel_consul.ring.net.libp2p import stream as muxed_stream
from spegel_consul.ring.net.libp2p.peer_connection import MAX_INBOUND_STREAMS
from spegel_consul.ring.net.libp2p_host import Libp2pHost
from spegel_consul.ring.protocol_server import _SLICE as SLICE
from spegel_consul.ring.router import KadRouter
from tests.ring.net.libp2p_floods import PING, WITHIN

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


class Rounds:
    """The most events between two rounds of a task that does nothing else."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.most = self.events = self._since = 0
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        while True:
            self._since = 0
            await trio.lowlevel.checkpoint()

    def count(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """``real``, each call of which is an event."""

        def counted(*args: Any) -> Any:
            self.events += 1
            self._since += 1
            self.most = max(self.most, self._since)
            return real(*args)

        return counted


def frames(stream: Any, payload: bytes, count: int) -> bytes:
    """Data frames of Yamux, to be sent in one write."""
    return (muxer._HEADER.pack(0, muxer.yamux.TYPE_DATA, 0, stream._muxed.stream_id, len(payload)) + payload) * count


@pytest.mark.parametrize(
    ("payload", "count"),
    [(b"\x02\x08\x05" * 341, 63), (PING, 3800), (b"\x05\x08\x04\x12\x01a" * 170, 63)],
    ids=["long frames", "short frames", "members"],
)
async def test_many_questions_in_one_write_do_not_keep_the_others_waiting(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, nursery: trio.Nursery, payload: bytes, count: int
) -> None:
    stream = await _raw_stream(attacker, victim, KAD, PING)
    assert await stream.receive()
    await trio.testing.wait_all_tasks_blocked()  # until the stream is read again
    rounds = Rounds(nursery)
    answers = victim.router._answers
    answers.answer = rounds.count(answers.answer)  # type: ignore[method-assign]
    questions = count * len(Frames().feed(payload))
    stream._muxed.conn._session.put(frames(stream, payload, count))  # type: ignore[attr-defined]
    await eventually(lambda: rounds.events == questions, WITHIN)
    assert rounds.most <= 10 * SLICE
    stream.reset()
    await victim.still_works(friend)


async def test_questions_between_other_frames_do_not_keep_the_others_waiting_either(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, nursery: trio.Nursery
) -> None:
    stream = await _raw_stream(attacker, victim, KAD, PING)
    assert await stream.receive()
    await trio.testing.wait_all_tasks_blocked()  # until the stream is read again
    rounds = Rounds(nursery)
    answers = victim.router._answers
    answers.answer = rounds.count(answers.answer)  # type: ignore[method-assign]
    pong = muxer._HEADER.pack(0, muxer.yamux.TYPE_PING, muxer.yamux.FLAG_ACK, 0, 7)
    mixed = (frames(stream, PING * 80, 4) + pong) * 60
    stream._muxed.conn._session.put(mixed)  # type: ignore[attr-defined]
    await eventually(lambda: rounds.events == 60 * 4 * 80, WITHIN)
    assert rounds.most <= 15 * SLICE
    stream.reset()
    await victim.still_works(friend)


@pytest.mark.parametrize("flags", [muxer.yamux.FLAG_SYN, muxer.yamux.FLAG_ACK, 0], ids=["asks", "answers", "neither"])
async def test_pings_of_yamux_do_not_keep_the_others_waiting(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, nursery: trio.Nursery, flags: int
) -> None:
    await attacker.dial("127.0.0.1", victim.port)
    await eventually(lambda: attacker.id in victim.host._connections)
    ours, (theirs,) = attacker._connection(victim.host.id), victim.host._connections[attacker.id]
    assert ours is not None
    rounds = Rounds(nursery)
    session = theirs._muxed._session
    session._take = rounds.count(session._take)
    ours._muxed._session.put(muxer._HEADER.pack(0, muxer.yamux.TYPE_PING, flags, 0, 7) * 5400)
    await eventually(lambda: rounds.events >= 5400, WITHIN)
    assert rounds.most <= 10
    await victim.still_works(friend)


async def test_a_withdrawal_of_many_keys_does_not_keep_the_others_waiting(
    victim: Victim, friend: KadRouter, attacker: Libp2pHost, nursery: trio.Nursery
) -> None:
    rounds = Rounds(nursery)
    records = victim.router._records
    records.remove = rounds.count(records.remove)  # type: ignore[method-assign]
    keys = [struct.pack("!H", number) for number in range(10_000)]
    stream = await _raw_stream(attacker, victim, WITHDRAW, encode_withdrawal(keys))
    stream.close()
    await eventually(lambda: rounds.events == len(keys), WITHIN)
    assert rounds.most <= 2 * SLICE
    await victim.still_works(friend)
