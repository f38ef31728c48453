"""Relay, Passage, Tap and Spool by themselves: any order of pieces, any cut, and the position says what is true."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.hash_tap import Tap
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.relay import Passage, Relay
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import OWN, Spool, SpoolSpace

DATA = random.Random(15).randbytes(3_000_001)


class Peer:
    """A source that sends ``data`` and leaves."""

    def __init__(self, nursery: trio.Nursery, data: bytes) -> None:
        self.sock, self._far = trio.socket.socketpair()
        nursery.start_soon(self._send, data)

    async def _send(self, data: bytes) -> None:
        with self._far:
            view = memoryview(data)
            try:
                while view:
                    view = view[await self._far.send(view) :]
            except OSError:
                pass

    def fileno(self) -> int:
        return self.sock.fileno()


class Client:
    """Reads all that comes."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.sink, self._near = trio.socket.socketpair()
        self.received = bytearray()
        self.ended = trio.Event()
        nursery.start_soon(self._read)

    async def _read(self) -> None:
        with self._near:
            while data := await self._near.recv(70_000):
                self.received += data
        self.ended.set()

    async def end(self) -> bytes:
        self.sink.close()
        await self.ended.wait()
        return bytes(self.received)


@pytest.fixture
async def open_files() -> AsyncIterator[None]:
    """None is left open: pipes that are kept for the next relay are those that were there."""
    from spegel_consul.zerocopy import relay

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir())) - 2 * len(relay._spare_pipes)

    before = count()
    yield
    with trio.fail_after(10):
        while count() > before:
            await trio.sleep(0.005)


def carrier(kind: str, client: Client, position: Position, hasher: Any) -> Relay | Passage:
    if kind == "relay":
        return Relay(client.sink, position, hasher)

    async def send(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await client.sink.send(view) :]

    return Passage(send, position, hasher)


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("seed", range(8))
async def test_a_body_in_any_parts_from_any_number_of_sources(seed: int, hashed: bool) -> None:
    rng = random.Random(seed)
    size = rng.choice([1, 4096, 100_000, len(DATA)])
    cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(rng.randrange(4)))})
    data, position, hasher = DATA[:size], Position(size), hashlib.sha256() if hashed else None
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        relay = await Relay.start(client.sink, position, hasher)
        assert relay is not None
        for start, stop in pairwise(cuts):
            part = data[start:stop]
            buffered = rng.randrange(len(part) + 1)
            peer = Peer(nursery, part[buffered:])
            with peer.sock:
                await relay.put(part[:buffered])
                if stop == size:
                    await relay.pull(peer, Throughput(5.0))
                else:
                    with pytest.raises(PeerError, match="closed the connection"):
                        await relay.pull(peer, Throughput(5.0))
            assert position.taken == stop
        if hashed:
            assert position.sent < size, "the last piece waits for the hash"
            assert len(client.received) < size
        assert await relay.hashed()
        if hasher is not None:
            assert hasher.digest() == hashlib.sha256(data).digest()
        await relay.release()
        relay.close()
        assert await client.end() == data
    assert (position.taken, position.sent, position.whole) == (size, size, True)


@pytest.mark.parametrize("kind", ["relay", "passage"])
async def test_more_than_was_promised_is_refused_before_it_is_sent(kind: str) -> None:
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        position = Position(10)
        into = carrier(kind, client, position, None)
        await into.put(b"12345678")
        with pytest.raises(PeerError) as failed:
            await into.put(b"9abc")
        assert failed.value.broken
        into.close()
        assert b"12345678".startswith(await client.end())


async def test_a_relay_that_is_closed_with_bytes_inside_throws_its_pipe_away() -> None:
    """Else the next client would be sent the bytes of this one."""
    async with trio.open_nursery() as nursery:
        client, hasher = Client(nursery), hashlib.sha256()
        relay = await Relay.start(client.sink, Position(100_000), hasher)
        assert relay is not None
        peer = Peer(nursery, DATA[:100_000])
        with peer.sock:
            await relay.pull(peer, Throughput(5.0))
        relay.close()
        assert len(await client.end()) < 100_000
        other = Client(nursery)
        again = await Relay.start(other.sink, Position(5), hashlib.sha256())
        assert again is not None
        await again.put(b"clean")
        await again.hashed()
        await again.release()
        again.close()
        assert await other.end() == b"clean"


@pytest.mark.usefixtures("open_files")
async def test_a_tap_hashes_what_is_written_and_teed_in_order() -> None:
    hasher, kept = hashlib.sha256(), bytearray()
    tap = Tap(hasher, lambda piece: kept.extend(piece))
    assert await tap.start()
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    await tap.write(DATA[:1_500_000])
    os.write(writing, DATA[1_500_000:1_540_000])
    copied = 0
    while copied < 40_000:
        step = await tap.tee(reading, 40_000 - copied)
        assert os.read(reading, step) == DATA[1_500_000 + copied : 1_500_000 + copied + step]
        copied += step
    tap.end()
    await tap.done.wait()
    os.close(reading)
    os.close(writing)
    assert bytes(kept) == DATA[:1_540_000]
    assert hasher.digest() == hashlib.sha256(kept).digest()
    assert not tap.broken


@pytest.mark.usefixtures("open_files")
async def test_a_tap_whose_thread_fails_says_so_and_holds_nobody_up() -> None:
    def fails(_: memoryview) -> None:
        raise MemoryError

    tap = Tap(hashlib.sha256(), fails)
    assert await tap.start()
    with trio.fail_after(10):
        await tap.write(DATA)
        tap.end()
        await tap.done.wait()
    assert tap.broken


@pytest.mark.usefixtures("open_files")
async def test_a_tap_that_never_began_leaves_nothing_open() -> None:
    Tap(hashlib.sha256()).end()


@pytest.mark.usefixtures("open_files")
@pytest.mark.parametrize("seed", range(6))
async def test_a_spool_loses_no_byte_however_often_its_taker_is_cancelled(seed: int) -> None:
    """The one that takes may leave at any moment, and another task goes on."""
    rng, position, hasher = random.Random(seed), Position(len(DATA)), hashlib.sha256()
    space = SpoolSpace(None)
    spool = Spool(space, position, hasher, trio.current_time() + 60)
    assert space.by_client == {OWN: len(DATA)}
    async with trio.open_nursery() as nursery:
        buffered = rng.choice([0, 4000, 1_200_000])  # the last is more than the pipe takes at once
        peer = Peer(nursery, DATA[buffered:])
        assert await spool.start()
        with peer.sock:
            with trio.CancelScope() as first:
                first.cancel()
                await spool.put(DATA[:buffered])
            while spool.left:
                with trio.move_on_after(rng.choice([0, 0, 0.001])):
                    await spool.pull(peer, Throughput(5.0))
        assert await spool.start(), "to begin again is to go on"
        with trio.CancelScope() as impatient:
            impatient.cancel()
            await spool.settle()
        assert await spool.settle()
    assert hasher.digest() == hashlib.sha256(DATA).digest()
    assert os.pread(spool.fd, spool.stored, 0) + spool.rest == DATA
    spool.close()
    assert not space.by_client
    assert space.promised == 0


async def test_a_spool_counts_for_one_client_after_another_and_for_what_it_has() -> None:
    space, position = SpoolSpace(None), Position(1000)
    spool = Spool(space, position, hashlib.sha256(), trio.current_time() + 60, "10.0.0.7")
    assert await spool.start()
    await spool.put(b"x" * 600)
    spool.charge("10.0.0.8")
    assert space.by_client == {"10.0.0.8": 1000}
    assert await spool.settle()
    assert space.by_client == {"10.0.0.8": 600}
    spool.close()
    spool.close()
    assert (space.by_client, space.promised) == ({}, 0)


@pytest.mark.parametrize(
    ("promised", "client", "fits"),
    [
        ({OWN: 100}, OWN, True),
        ({OWN: 101}, OWN, False),
        ({"a": 25}, "a", True),
        ({"a": 26}, "a", False),
        ({"a": 25, "b": 25}, "b", True),
        ({"a": 25, "b": 20, "c": 6}, "c", False),
        ({"a": 25, "b": 25, OWN: 50}, OWN, True),
        ({"a": 20, OWN: 81}, "a", False),
    ],
)
def test_shares_of_a_room_of_a_hundred(promised: dict[str, int], client: str, fits: bool) -> None:
    space = SpoolSpace(None)
    for each, total in promised.items():
        space.promise(each, total)
    assert space._has(client, 100) == fits


async def test_a_source_that_closes_mid_pipe_says_where_the_next_one_begins() -> None:
    source, far = socket.socketpair()
    source.setblocking(False)
    far.sendall(DATA[:5000])
    far.close()
    position = Position(10_000)
    async with trio.open_nursery() as nursery:
        client = Client(nursery)
        relay = Relay(client.sink, position, None)
        with source, pytest.raises(PeerError, match="closed"):
            await relay.pull(source, Throughput(1.0))
        relay.close()
        assert await client.end() == DATA[:5000]
    assert (position.taken, position.sent) == (5000, 5000)
