"""Bodies that are held in memory: no byte is lost, and their memory is bounded."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy import small_spool
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.small_spool import MOST, SMALL, SmallSpool, open_spool
from spegel_consul.zerocopy.source import Throughput
from spegel_consul.zerocopy.spool import OWN, Spool, SpoolSpace

DATA = random.Random(7).randbytes(SMALL)


def opened(space: SpoolSpace, total: int = SMALL, until: float = 60.0) -> Spool | SmallSpool:
    return open_spool(space, Position(total), hashlib.sha256(), trio.current_time() + until, OWN)


@pytest.mark.parametrize("seed", range(4))
async def test_it_loses_no_byte_however_often_its_taker_is_cancelled(seed: int) -> None:
    rng, position, hasher = random.Random(seed), Position(len(DATA)), hashlib.sha256()
    space = SpoolSpace(None)
    spool = SmallSpool(space, position, hasher, trio.current_time() + 60)
    near, far = trio.socket.socketpair()
    with near, far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.SocketStream(far).send_all, DATA[4000:])
            await spool.put(DATA[:4000])
            while not spool.ended:
                with trio.move_on_after(rng.choice([0, 0.001])):
                    await spool.pull(near, Throughput(5.0))
    assert await spool.settle()
    assert spool.rest == DATA
    assert hasher.digest() == hashlib.sha256(DATA).digest()
    assert (space.promised, space.in_memory) == (0, SMALL)
    spool.close()
    spool.close()
    assert space.in_memory == 0


async def test_it_ends_at_its_deadline_with_the_bytes_so_far() -> None:
    spool = opened(SpoolSpace(None), 1000, until=0.5)
    near, far = trio.socket.socketpair()
    with near, far:
        await far.send(DATA[:400])
        await spool.pull(near, Throughput(5.0))
        assert (spool.ended, spool.left, bytes(spool.rest)) == (True, 600, DATA[:400])
    spool.close()


async def test_a_source_that_fails_or_is_silent_is_named_and_its_bytes_are_kept() -> None:
    spool = opened(SpoolSpace(None), 1000)
    near, far = trio.socket.socketpair()
    with near:
        with far:
            await far.send(DATA[:300])
            with pytest.raises(PeerError, match="sent nothing for 5 s"):
                await spool.pull(near, Throughput(5.0))
        with pytest.raises(PeerError, match="closed the connection"):
            await spool.pull(near, Throughput(5.0))
    near, far = trio.socket.socketpair()
    with near, far:
        await far.send(DATA[300:1001])
        await spool.pull(near, Throughput(5.0))
        assert await near.recv(10) == DATA[1000:1001], "the byte behind the body is left in the socket"
    assert bytes(spool.rest) == DATA[:1000]
    with pytest.raises(PeerError, match="more bytes"):
        await spool.put(b"x")
    spool.close()


async def test_the_memory_of_all_is_bounded_and_few_buffers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_spool, "_spare_buffers", [])
    space = SpoolSpace(None)
    held = [opened(space) for _ in range(MOST // SMALL)]
    assert all(isinstance(each, SmallSpool) for each in held)
    others = [opened(space, 1), opened(SpoolSpace(None), SMALL + 1)]
    assert all(isinstance(each, Spool) for each in others)
    held.pop().close()
    held.append(opened(space, 1))
    assert isinstance(held[-1], SmallSpool)
    for each in held + others:
        each.close()
    assert space.in_memory == 0
    assert len(small_spool._spare_buffers) == small_spool._MAX_SPARE
