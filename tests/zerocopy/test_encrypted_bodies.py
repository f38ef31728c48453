"""Bodies with TLS at one end, or at both."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.encrypted import pump as pump_module
from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.encrypted.plain_end import end_of
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.source import SourceLeft, SourceSlow, Throughput
from spegel_consul.zerocopy.spool import OWN, Spool, SpoolSpace
from tests.zerocopy.encrypted_ends import DATA, RANDOM, Contexts, client, contexts, file, shaken

__all__ = ["contexts", "file"]


async def source(
    kind: str, contexts: Contexts, nursery: trio.Nursery, data: bytes, then: trio.Event | None = None
) -> SecureSocket | trio.socket.SocketType:
    """What sends ``data``, and leaves when ``then`` is set."""
    near: SecureSocket | trio.socket.SocketType
    far: SecureSocket | trio.socket.SocketType
    near, far = await shaken(contexts) if kind == "secure" else trio.socket.socketpair()

    async def send() -> None:
        try:
            with suppress(OSError, trio.ClosedResourceError, trio.TooSlowError):
                await end_of(far).send_all(data)
            if then is not None:
                await then.wait()
        finally:
            far.close()

    nursery.start_soon(send)
    return near


both = pytest.mark.parametrize(("origin", "sink"), [("secure", "plain"), ("plain", "secure"), ("secure", "secure")])


@both
@pytest.mark.parametrize("size", [1, 1000, 65_537, SLICE, 1_000_000, len(DATA)])
@pytest.mark.parametrize("hashed", [False, True])
async def test_a_body_from_three_sources(
    contexts: Contexts, nursery: trio.Nursery, origin: str, sink: str, size: int, hashed: bool
) -> None:
    cut = sorted(RANDOM.randrange(size + 1) for _ in range(2))
    body = DATA[:size]
    pieces = [body[: cut[0]], body[cut[0] : cut[1]], body[cut[1] :]]
    taker, position = await client(sink, contexts, nursery), Position(size)
    hasher = hashlib.sha256() if hashed else None
    carrier = Carrier(taker.sink, position, hasher)
    kinds = [origin, "plain" if origin == "secure" else "secure", origin]
    for number, piece in enumerate(pieces):
        first = piece[: RANDOM.randrange(len(piece) + 1)]
        await carrier.put(first)
        peer = await source(kinds[number], contexts, nursery, piece[len(first) :])
        try:
            await carrier.pull(peer, Throughput(5.0))
        except PeerError:
            assert position.left
        peer.close()
    assert carrier.ended
    assert await carrier.hashed()
    if hasher is not None:
        assert position.sent < size
        assert hasher.digest() == hashlib.sha256(body).digest()
    await carrier.release()
    assert position == Position(size, size, size)
    carrier.close()
    assert await taker.end() == body


@both
async def test_the_last_piece_of_a_body_that_is_to_be_verified_is_withheld(
    contexts: Contexts, nursery: trio.Nursery, origin: str, sink: str
) -> None:
    taker, position = await client(sink, contexts, nursery), Position(len(DATA))
    carrier = Carrier(taker.sink, position, hashlib.sha256())
    peer = await source(origin, contexts, nursery, DATA)
    await carrier.pull(peer, Throughput(5.0))
    carrier.close()
    peer.close()
    got = await taker.end()
    assert 0 < len(DATA) - len(got) <= SLICE
    assert DATA.startswith(got)
    assert position.sent == len(got)


@pytest.mark.parametrize("size", [100_000, len(DATA)])
async def test_a_source_that_says_nothing_drips_or_is_left(
    contexts: Contexts, nursery: trio.Nursery, size: int
) -> None:
    for expected in (PeerError, SourceLeft):
        stay = trio.Event()
        taker, position = await client("plain", contexts, nursery), Position(size)
        carrier = Carrier(taker.sink, position, None)
        peer = await source("secure", contexts, nursery, DATA[: size // 2], stay)
        throughput = Throughput(0.2)
        throughput.begin(size)
        if expected is SourceLeft:

            async def leave(throughput: Throughput = throughput, position: Position = position) -> None:
                while position.taken < size // 2:
                    await trio.sleep(0.001)
                throughput.leave()

            nursery.start_soon(leave)
        with pytest.raises(expected) as caught:
            await carrier.pull(peer, throughput)
        if isinstance(caught.value, PeerError):
            assert caught.value.hung
        assert (position.taken, position.sent) == (size // 2, size // 2)
        stay.set()
        carrier.close()
        peer.close()
        assert await taker.end() == DATA[: size // 2]


async def test_a_thread_s_waits_count_for_the_source_s_throughput(contexts: Contexts, nursery: trio.Nursery) -> None:
    """A source that always sends a byte just in time never makes the event loop wait."""
    server, client_end = await shaken(contexts)
    ended = threading.Event()

    async def drip() -> None:
        try:
            while not ended.is_set():
                await server.send_all(b"x")
                await trio.sleep(0.004)
        finally:
            server.close()

    nursery.start_soon(drip)
    taker = await client("plain", contexts, nursery)
    carrier = Carrier(taker.sink, Position(10 << 20), None)
    throughput = Throughput(0.5, 1 << 20)
    throughput.begin(10 << 20)
    with pytest.raises((SourceSlow, PeerError)):
        await carrier.pull(client_end, throughput)
    ended.set()
    carrier.close()
    await taker.end()
    client_end.close()


async def test_a_client_that_takes_nothing(
    contexts: Contexts, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    for kind in ("plain", "secure"):
        sink, near = trio.socket.socketpair() if kind == "plain" else await shaken(contexts)
        carrier = Carrier(sink, Position(len(DATA)), None)
        carrier._pump._in_thread = False  # a thread works in real time, which this clock would overtake
        peer = await source("secure", contexts, nursery, DATA)
        with pytest.raises(trio.TooSlowError):
            await carrier.pull(peer, Throughput(5.0))
        carrier.close()
        for each in (sink, near, peer):
            each.close()


@pytest.mark.parametrize("spool", ["memory", "file"])
@pytest.mark.parametrize("parts", [1, 3])
async def test_a_spool_from_encrypted_sources(
    contexts: Contexts, nursery: trio.Nursery, tmp_path: Path, spool: str, parts: int
) -> None:
    body = DATA if spool == "file" else DATA[:700_000]
    position, hasher = Position(len(body)), hashlib.sha256()
    until = trio.current_time() + 60
    space = SpoolSpace(tmp_path)
    made: Spool | SmallSpool
    made = Spool(space, position, hasher, until, OWN) if spool == "file" else SmallSpool(space, position, hasher, until)
    assert await made.start()
    size = len(body) // parts + 1
    for number, start in enumerate(range(0, len(body), size)):
        piece = body[start : start + size]
        await made.put(piece[:100])
        peer = await source("plain" if number == 1 else "secure", contexts, nursery, piece[100:])
        try:
            await made.pull(peer, Throughput(5.0))
        except PeerError:
            assert position.left
        peer.close()
    assert await made.settle()
    assert hasher.digest() == hashlib.sha256(body).digest()
    stored = os.pread(made.fd, made.stored, 0) if made.fd >= 0 else b""
    assert stored + bytes(made.rest) == body
    made.close()


async def test_a_process_that_may_start_no_thread_carries_on_the_event_loop(
    contexts: Contexts, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(pump_module.trio.to_thread, "run_sync", refused)
    taker, position = await client("plain", contexts, nursery), Position(len(DATA))
    carrier = Carrier(taker.sink, position, None)
    peer = await source("secure", contexts, nursery, DATA)
    await carrier.pull(peer, Throughput(5.0))
    carrier.close()
    peer.close()
    assert await taker.end() == DATA


def test_a_pump_waits_for_its_ends_in_all_no_longer_than_it_may() -> None:
    near, far = socket.socketpair()
    patience = pump_module._Patience(5.0)
    with near, far:
        while patience.wait(near.fileno(), select.POLLIN):
            pass
        assert patience.left <= 0
        assert not patience.wait(far.fileno(), select.POLLOUT)
        assert patience.for_source > 0
