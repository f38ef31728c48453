"""The conformance suite of the ``Host`` protocol: limits, and deadlines that pass while something arrives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from conformance.host_rig import ECHO, OTHER, WITHIN, Rig, Server, read
from conformance.router import eventually

from spegel_consul.ring.net.host import Host, Stream, StreamClosed, Unreachable

MOST_UNREAD = 16 << 20
"""Bytes that a host keeps at most for a peer which reads nothing, both ends together."""

STREAMS = 64
"""Streams of one peer that a host serves at once."""

INTERLEAVINGS = 300


async def interleave(attempt: Callable[[trio.CancelScope], Awaitable[None]]) -> None:
    """Run ``attempt`` again and again, and cancel its scope after ever more passes of the loop."""
    with trio.fail_after(5 * WITHIN):
        for passes in range(INTERLEAVINGS):
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(attempt, scope)
                for _ in range(passes % 60):
                    await trio.lowlevel.checkpoint()
                scope.cancel()


class HostLimitsSuite:
    """Derive from it and define the fixture ``rig``."""

    async def test_large_messages_arrive_whole(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        message = bytes(range(256)) * (1 << 12)
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, (), ECHO)
            for _ in range(3):
                stream.send(message)
                assert await read(stream, len(message)) == message
            stream.reset()

    async def test_what_nobody_reads_is_bounded(self, rig: Rig, server: Server) -> None:
        async def deaf(stream: Stream) -> None:
            await trio.sleep_forever()

        here, there = await rig.host({}), await rig.host({**server.handlers, OTHER: deaf})
        sent = 0
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], OTHER)
            with pytest.raises(StreamClosed):
                while sent <= MOST_UNREAD:
                    stream.send(bytes(1 << 16))
                    sent += 1 << 16
                    await trio.lowlevel.checkpoint()
            with pytest.raises(StreamClosed):
                await stream.receive()
            other = await here.open(there.id, [there.address], ECHO)
            other.send(b"still")
            assert await read(other, 5) == b"still"
            other.reset()
        assert 1 << 20 <= sent <= MOST_UNREAD, "the longest member list still fits"

    async def test_too_many_streams_are_not_served_and_not_taken_for_an_unknown_protocol(
        self, pair: tuple[Host, Host], server: Server
    ) -> None:
        here, there = pair
        with trio.fail_after(WITHIN):
            streams = [await here.open(there.id, (), ECHO) for _ in range(STREAMS)]
            for stream in streams:
                stream.send(b"here")
                await read(stream, 4)
            with pytest.raises(Unreachable):
                await here.open(there.id, (), ECHO)
            assert server.live == STREAMS
            for stream in streams:
                stream.reset()
            await eventually(lambda: not server.live, WITHIN)
            stream = await here.open(there.id, (), ECHO)
            stream.send(b"again")
            assert await read(stream, 5) == b"again"
            stream.reset()

    async def test_a_stream_whose_opener_gave_up_is_reset(self, pair: tuple[Host, Host], server: Server) -> None:
        here, there = pair
        got = 0

        async def open_and_reset(scope: trio.CancelScope) -> None:
            nonlocal got
            if server.live > STREAMS // 2:
                await eventually(lambda: not server.live, WITHIN)
            with scope:
                stream = await here.open(there.id, (), ECHO)
                got += 1
                stream.reset()

        await interleave(open_and_reset)
        await eventually(lambda: not server.live, WITHIN)
        assert server.opened == server.ended == len(server.seen)
        assert set(server.seen) <= {"reset"}
        assert server.opened >= got

    async def test_a_deadline_at_the_moment_of_the_data_loses_nothing_unnoticed(
        self, pair: tuple[Host, Host], server: Server
    ) -> None:
        here, there = pair
        outcomes: list[str] = []

        async def ask(scope: trio.CancelScope) -> None:
            if server.live > STREAMS // 2:
                await eventually(lambda: not server.live, WITHIN)
            stream = await here.open(there.id, (), ECHO)
            try:
                stream.send(b"question")
                with scope:
                    assert await read(stream, 8) == b"question"
                    outcomes.append("answered")
                    return
                outcomes.append("gave up")
            finally:
                stream.reset()

        await interleave(ask)
        assert len(outcomes) == INTERLEAVINGS
        await eventually(lambda: not server.live, WITHIN)
        assert server.opened == server.ended == len(server.seen)
        assert set(server.seen) <= {"reset"}
