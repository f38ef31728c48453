"""The conformance suite of the ``Host`` protocol: what every Host must do, whatever carries it.

A test module derives a class from HostSuite and gives it a fixture ``rig``.  The clock may be real or simulated:
nothing here measures, and what takes a while is waited for.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing
from conformance.host_rig import ECHO, OTHER, SINK, WITHIN, Rig, Server, pair, read, server
from conformance.router import eventually

from spegel_consul.multiaddrs import Address
from spegel_consul.ring.net.host import (
    DialledSelf,
    Host,
    ProtocolRefused,
    Replaced,
    Stream,
    StreamClosed,
    StreamReset,
    Unreachable,
)

__all__ = ["HostSuite", "pair", "server"]


class HostSuite:
    """Derive from it and define the fixture ``rig``; host_limits.py has more."""

    # -- connections

    async def test_dialling_connects_both(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        await eventually(lambda: there.is_connected(here.id), WITHIN)
        assert here.connected() == (there.id,)
        assert there.connected() == (here.id,)
        assert here.is_connected(there.id)
        assert here.hosts_of(there.id) == (there.address.host,)
        assert there.hosts_of(here.id) == (here.address.host,)
        assert here.hosts_of(here.id) == ()
        assert await here.dial(there.address.host, there.address.port) == there.id
        assert here.connected() == (there.id,)
        assert (await here.identify(there.id)).protocols >= {ECHO, SINK}

    async def test_who_is_not_there_is_told_from_who_was_replaced(self, rig: Rig, pair: tuple[Host, Host]) -> None:
        here, there = pair
        gone = await rig.host({})
        await rig.kill(gone)
        with pytest.raises(DialledSelf), trio.fail_after(WITHIN):
            await here.dial(here.address.host, here.address.port)
        with pytest.raises(Replaced), trio.fail_after(WITHIN):
            await here.open(gone.id, [there.address], ECHO)
        for addresses in ([], [gone.address], [gone.address, there.address]):
            with pytest.raises(Unreachable) as caught, trio.fail_after(WITHIN):
                await here.open(gone.id, addresses, ECHO)
            assert caught.type is Unreachable

    async def test_opening_dials_where_it_must(self, rig: Rig, server: Server) -> None:
        here, there = await rig.host({}), await rig.host(server.handlers)
        nobody = Address(there.address.host, 1)
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [nobody, there.address], ECHO)
            assert stream.peer == there.id
            stream.send(b"hello")
            assert await read(stream, 5) == b"hello"
            stream.reset()

    async def test_a_connection_that_is_dropped_is_told_once_to_both(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        told: list[tuple[str, bytes]] = []
        here.on_disconnect = lambda peer: told.append(("here", peer))
        there.on_disconnect = lambda peer: told.append(("there", peer))
        await eventually(lambda: there.is_connected(here.id), WITHIN)
        here.disconnect(there.id)
        await eventually(lambda: len(told) == 2, WITHIN)
        assert sorted(told) == [("here", there.id), ("there", here.id)]
        assert (here.connected(), there.connected()) == ((), ())

    async def test_a_dial_goes_on_for_those_who_still_wait(self, rig: Rig, server: Server) -> None:
        here, there = await rig.host({}), await rig.host(server.handlers)
        streams: list[Stream] = []

        async def open_one() -> None:
            streams.append(await here.open(there.id, [there.address], ECHO))

        with trio.fail_after(WITHIN):
            async with trio.open_nursery() as nursery:
                impatient = trio.CancelScope()

                async def give_up() -> None:
                    with impatient:
                        await open_one()

                nursery.start_soon(give_up)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(open_one)
                await trio.lowlevel.checkpoint()
                impatient.cancel()
        assert len(streams) == 1

    # -- streams

    async def test_several_streams_do_not_mix(self, pair: tuple[Host, Host], server: Server) -> None:
        here, there = pair

        async def talk(number: int) -> None:
            stream = await here.open(there.id, (), ECHO)
            for round_ in range(5):
                said = f"{number} {round_}".encode() * 50
                stream.send(said)
                assert await read(stream, len(said)) == said
            stream.close()
            assert await stream.receive() == b""

        with trio.fail_after(WITHIN):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(talk, number)
        await eventually(lambda: not server.live, WITHIN)
        assert server.seen == ["end"] * 20

    async def test_bytes_are_taken_in_order_as_they_arrive(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        pieces = [bytes([number]) * 300 for number in range(100)]
        taken = bytearray()

        def take(data: bytes) -> bool:
            if data.endswith(b"not this"):
                return False
            if data == b"wrong":
                raise StreamClosed("refused by the reader")
            taken.extend(data)
            return True

        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], ECHO)
            stream.send(b"first")
            assert await read(stream, 5) == b"first"

            async def send() -> None:
                for piece in [*pieces, b"not this"]:
                    await trio.testing.wait_all_tasks_blocked()
                    stream.send(piece)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while not (found := await stream.receive(take)).endswith(b"not this"):
                    taken.extend(found)  # what came before the call waited
            assert bytes(taken) + found == b"".join(pieces) + b"not this"
            async with trio.open_nursery() as nursery:

                async def refuse() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    stream.send(b"wrong")

                nursery.start_soon(refuse)
                with pytest.raises(StreamClosed, match="refused by the reader"):
                    await stream.receive(take)

    async def test_an_ended_side_leaves_the_other_open(self, pair: tuple[Host, Host], server: Server) -> None:
        here, there = pair
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, (), SINK)
            for _ in range(10):
                stream.send(bytes(1000))
            stream.close()
            stream.close()
            with pytest.raises(StreamClosed):
                stream.send(b"after the end")
            assert await read(stream, 5) == b"10000"
            for _ in range(3):
                assert await stream.receive() == b"", "what has ended stays so"
        assert server.seen == ["end"]

    async def test_a_protocol_that_is_not_served_is_refused(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        with pytest.raises(ProtocolRefused), trio.fail_after(WITHIN):
            await here.open(there.id, (), OTHER)
        assert here.is_connected(there.id)

    @pytest.mark.parametrize("said", [b"", b"something before"])
    async def test_a_reset_is_seen_as_a_reset(self, pair: tuple[Host, Host], server: Server, said: bytes) -> None:
        here, there = pair
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, (), ECHO)
            if said:
                stream.send(said)
                await read(stream, len(said))
            await eventually(lambda: server.live, WITHIN)
            stream.reset()
            stream.reset()
            await eventually(lambda: not server.live, WITHIN)
            assert server.seen == ["reset"]
            with pytest.raises(StreamClosed):
                stream.send(b"more")
            with pytest.raises(StreamClosed):
                await stream.receive()

    async def test_who_resets_wakes_its_own_reader(self, pair: tuple[Host, Host]) -> None:
        here, there = pair
        stream = await here.open(there.id, (), SINK)

        async def reset() -> None:
            await trio.sleep(0.01)
            stream.reset()

        with trio.fail_after(WITHIN):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reset)
                with pytest.raises(StreamClosed):
                    await stream.receive()

    async def test_a_handler_that_fails_resets(self, rig: Rig) -> None:
        async def fail(stream: Stream) -> None:
            stream.send(await stream.receive())
            raise ValueError("the peer is to hear of it")

        async def fail_after_the_end(stream: Stream) -> None:
            while await stream.receive():
                pass
            raise ValueError("refused")

        here, there = await rig.host({}), await rig.host({ECHO: fail, SINK: fail_after_the_end})
        for protocol in (ECHO, SINK):
            with trio.fail_after(WITHIN):
                stream = await here.open(there.id, [there.address], protocol)
                stream.send(b"question")
                if protocol == SINK:
                    stream.close()
                for _ in range(3):
                    with pytest.raises(StreamReset):
                        while await stream.receive():
                            pass

                def is_broken(stream: Stream = stream) -> bool:
                    try:
                        stream.send(b"?")
                    except StreamClosed:
                        return True
                    return False

                await eventually(is_broken, WITHIN)
        assert here.is_connected(there.id), "only the stream ends"

    async def test_an_end_that_was_read_stays_one_when_a_reset_follows(self, rig: Rig) -> None:
        read_it = trio.Event()

        async def end_then_reset(stream: Stream) -> None:
            stream.send(b"all")
            stream.close()
            await read_it.wait()
            stream.reset()

        here, there = await rig.host({}), await rig.host({ECHO: end_then_reset})
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], ECHO)
            assert await read(stream, 3) == b"all"
            assert await stream.receive() == b""
            read_it.set()
            for _ in range(20):
                assert await stream.receive() == b""
                await trio.sleep(0.005)
            stream.reset()

    async def test_a_handler_that_ends_without_a_word_does_not_leave_the_peer_waiting(self, rig: Rig) -> None:
        async def leave(stream: Stream) -> None:
            await stream.receive()

        here, there = await rig.host({}), await rig.host({ECHO: leave})
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], ECHO)
            stream.send(b"question")
            with pytest.raises(StreamReset):
                await stream.receive()

    async def test_who_ends_and_never_hears_the_end_resets(self, rig: Rig, server: Server) -> None:
        async def answer_and_end(stream: Stream) -> None:
            stream.send(b"answer")
            stream.close()

        here, there = await rig.host({}), await rig.host({ECHO: answer_and_end})
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], ECHO)
            assert await read(stream, 6) == b"answer"

            def is_broken() -> bool:
                try:
                    stream.send(b"?")
                except StreamClosed:
                    return True
                return False

            await eventually(is_broken, WITHIN)

    async def test_a_peer_that_goes_in_the_middle_is_no_end(self, rig: Rig, server: Server) -> None:
        here, there = await rig.host({}), await rig.host(server.handlers)
        with trio.fail_after(WITHIN):
            stream = await here.open(there.id, [there.address], ECHO)
            stream.send(b"question")
            await read(stream, 8)

            async def kill() -> None:
                await trio.sleep(0.01)
                await rig.kill(there)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(kill)
                with pytest.raises(StreamClosed) as caught:
                    await stream.receive()
            assert caught.type is StreamClosed, "the connection is gone, the peer has reset nothing"
            await eventually(lambda: not here.connected(), WITHIN)
            for _ in range(2):
                with pytest.raises(StreamClosed):
                    await stream.receive()
            with pytest.raises(StreamClosed):
                stream.send(b"more")
            with pytest.raises(Unreachable):
                await here.open(there.id, [there.address], ECHO)
