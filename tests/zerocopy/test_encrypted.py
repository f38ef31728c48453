"""Sockets with TLS and without, which must not differ."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from spegel_consul.zerocopy.encrypted.plain_end import PlainEnd
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket
from spegel_consul.zerocopy.send import STALL
from tests.zerocopy.encrypted_ends import DATA, Contexts, End, contexts, kinds, read, shaken

__all__ = ["contexts"]


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@asynccontextmanager
async def connected(kind: str, contexts: Contexts) -> AsyncIterator[tuple[End, End, Callable[[], None]]]:
    """Two ends, and what closes the second."""
    if kind == "plain":
        one, two = trio.socket.socketpair()
        with one, two:
            yield PlainEnd(one.fileno), PlainEnd(two.fileno), two.close
    else:
        server, client = await shaken(contexts)
        try:
            yield (server, client, client.close) if kind == "server" else (client, server, server.close)
        finally:
            server.close()
            client.close()


@kinds
async def test_both_kinds_carry_the_same_bytes_in_both_directions(kind: str, contexts: Contexts) -> None:
    async with connected(kind, contexts) as (one, two, close):
        for sender, receiver in ((one, two), (two, one)):
            for size, most in ((1, SLICE), (5, 2), (16_384, SLICE), (len(DATA), SLICE), (len(DATA), 1000)):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(sender.send_all, DATA[:size])
                    assert await read(receiver, size, most) == DATA[:size]
        await two.send_all(b"the last")
        close()
        assert await read(one, 100) == b"the last"
        assert one.read_now(memoryview(bytearray(10))) == 0


@kinds
async def test_neither_kind_waits_where_it_must_not(kind: str, contexts: Contexts) -> None:
    async with connected(kind, contexts) as (one, two, _):
        with pytest.raises(BlockingIOError):
            one.read_now(memoryview(bytearray(10)))
        taken = 0
        with pytest.raises(BlockingIOError):
            while taken < 1 << 26:
                taken += one.write_now(memoryview(DATA)[:SLICE])
        # all that was taken arrives
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.flush)
            got = await read(two, taken)
        assert len(got) == taken
        assert one.write_now(memoryview(b"again")) == 5


@pytest.mark.parametrize("kind", ["plain", "server"])
async def test_a_receiver_that_takes_nothing_for_a_minute(
    kind: str, contexts: Contexts, autojump_clock: MockClock
) -> None:
    async with connected(kind, contexts) as (one, _, _):
        began = trio.current_time()
        with pytest.raises(trio.TooSlowError):
            await one.send_all(DATA * 3)
        assert trio.current_time() - began == STALL


class Wire:
    """A client whose encrypted bytes the test carries itself."""

    def __init__(self, context: ssl.SSLContext, far: socket.socket) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self.far = trio.socket.from_stdlib_socket(far)
        self.size = 1 << 20

    async def push(self) -> None:
        data = memoryview(self.outgoing.read())
        while data:
            data = data[await self.far.send(data[: self.size]) :]
            await trio.testing.wait_all_tasks_blocked()

    async def shake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.push()
                self.incoming.write(await self.far.recv(1 << 16))
        await self.push()


@asynccontextmanager
async def wired(contexts: Contexts, version: ssl.TLSVersion | None = None) -> AsyncIterator[tuple[SecureSocket, Wire]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    server = SecureSocket(trio.socket.from_stdlib_socket(near), contexts[0], server_side=True)
    client = contexts[1]
    if version is not None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
    wire = Wire(client, far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(wire.shake)
    try:
        yield server, wire
    finally:
        server.close()
        wire.far.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [1, 4, 5, 6, 21, 22, 300])
async def test_records_that_come_in_pieces(contexts: Contexts, version: ssl.TLSVersion, size: int) -> None:
    async with wired(contexts, version) as (server, wire):
        wire.size = size
        for text in (b"x", b"a request", DATA[:700]):
            wire.tls.write(text)
            got = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.push)
                while len(got) < len(text):
                    got += await server.receive_some(1 << 16)
            assert got == text


async def test_many_small_records_in_one_piece_leave_turns_to_other_tasks(contexts: Contexts) -> None:
    async with wired(contexts) as (server, wire):
        for _ in range(200):
            wire.tls.write(b"x")
        await wire.push()
        turns = [0]

        async def other() -> None:
            while True:
                turns[0] += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(200):
                assert await server.receive_some(1) == b"x"
            nursery.cancel_scope.cancel()
        assert turns[0] > 150


async def test_records_without_content_leave_turns_to_other_tasks(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer may send key updates for ever, and Python's ssl can't: so bytes come, and nothing is in them."""
    server, client = await shaken(contexts)
    turns = 0

    def nothing() -> bool:
        nonlocal turns
        turns += 1
        return True

    monkeypatch.setattr(SecureSocket, "_receive_now", lambda self: nothing())
    monkeypatch.setattr(SecureSocket, "_decrypt", lambda self, view: 0)
    with trio.move_on_after(0.05) as limited:
        await server.receive_some(100)
    assert limited.cancelled_caught
    assert turns > 1
    monkeypatch.setattr(os, "readv", lambda fd, buffers: 1)
    with pytest.raises(BlockingIOError):
        server.read_now(memoryview(bytearray(100)))
    server.close()
    client.close()


@pytest.mark.parametrize("how", ["close_notify", "end of the connection", "end within a record"])
async def test_an_end_is_an_end_whoever_says_it(contexts: Contexts, how: str) -> None:
    """Without close_notify it may be forged, so a caller must not take it for the end of a body."""
    async with wired(contexts) as (server, wire):
        wire.tls.write(b"half of a body")
        if how == "close_notify":
            with pytest.raises(ssl.SSLWantReadError):
                wire.tls.unwrap()
        elif how == "end within a record":
            await wire.push()
            wire.tls.write(b"and more")
            half = wire.outgoing.read()[:20]
            await wire.far.send(half)
        await wire.push()
        if how != "close_notify":
            wire.far.shutdown(socket.SHUT_WR)
        assert await server.receive_some(100) == b"half of a body"
        assert await server.receive_some(100) == b""
        assert await server.receive_some(100) == b""
        # the other direction goes on
        await server.send_all(b"the answer")
        wire.incoming.write(await wire.far.recv(1 << 16))
        assert wire.tls.read(100) == b"the answer"


async def test_bytes_that_are_no_records_end_the_connection_with_an_alert(contexts: Contexts) -> None:
    async with wired(contexts) as (server, wire):
        await wire.far.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await server.receive_some(100)
        with pytest.raises(trio.ClosedResourceError):
            await server.receive_some(100)
        with pytest.raises(trio.ClosedResourceError):
            await server.send_all(b"x")
        wire.incoming.write(await wire.far.recv(1 << 16))
        with pytest.raises(ssl.SSLError):
            wire.tls.read(100)


async def test_a_record_that_was_changed_is_refused(contexts: Contexts) -> None:
    async with wired(contexts) as (server, wire):
        wire.tls.write(b"pay me")
        record = bytearray(wire.outgoing.read())
        record[-1] ^= 1
        await wire.far.send(record)
        with pytest.raises(ssl.SSLError):
            server.read_now(memoryview(bytearray(100)))


async def test_the_peer_leaves_in_the_handshake(contexts: Contexts) -> None:
    near, far = trio.socket.socketpair()
    secure = SecureSocket(near, contexts[1], name="127.0.0.1")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def leave() -> None:
            await far.recv(1000)
            far.close()

        with pytest.raises(ConnectionResetError):
            await secure.do_handshake()
    secure.close()


async def test_an_idle_connection_is_quiet_until_something_comes(contexts: Contexts) -> None:
    server, client = await shaken(contexts)
    async with trio.open_nursery() as nursery:  # tickets of TLS 1.3
        nursery.start_soon(server.send_all, b"an answer")
        assert await client.receive_some(100) == b"an answer"
    assert client.is_quiet()
    await server.send_all(b"unasked")
    assert not client.is_quiet()
    server.close()
    assert not client.is_quiet()
    client.close()
    assert not client.is_quiet()


class Watched:
    """A memory of OpenSSL's, and the most that was ever in it."""

    def __init__(self, memory: ssl.MemoryBIO) -> None:
        self._memory = memory
        self.most = 0

    @property
    def pending(self) -> int:
        self.most = max(self.most, self._memory.pending)
        return self._memory.pending

    def write(self, data: bytes) -> int:
        count = self._memory.write(data)
        assert self.pending
        return count

    def read(self) -> bytes:
        assert self.pending
        return self._memory.read()


async def test_openssl_s_memory_stays_small(contexts: Contexts) -> None:
    """It never shrinks, and a thousand idle connections would keep it."""
    server, client = await shaken(contexts)
    watched = server._outgoing, client._incoming = Watched(server._outgoing), Watched(client._incoming)  # type: ignore[assignment]
    for size in (100, 70_000, SLICE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.send_all, DATA)
            assert await read(client, len(DATA), size) == DATA
    for memory in watched:
        assert 1 << 15 <= memory.most < 3 << 15
    server.close()
    client.close()


async def test_a_socket_with_tls_can_t_be_given_to_the_kernel(contexts: Contexts) -> None:
    """sendfile, splice and all else that takes a file's descriptor ask for fileno()."""
    server, client = await shaken(contexts)
    assert not hasattr(server, "fileno")
    with pytest.raises((AttributeError, TypeError)):
        os.sendfile(server, 0, 0, 1)  # type: ignore[arg-type]
    server.close()
    client.close()
