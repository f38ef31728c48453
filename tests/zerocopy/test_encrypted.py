"""Sockets with TLS and without, which must not differ; and transfers with TLS at one end, or at both."""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.certificates import Authority
from trio.testing import MockClock

from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.encrypted import pump as pump_module
from spegel_consul.zerocopy.encrypted import send_encrypted as send_module
from spegel_consul.zerocopy.encrypted.carrier import Carrier
from spegel_consul.zerocopy.encrypted.plain_end import PlainEnd, end_of
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket
from spegel_consul.zerocopy.encrypted.send_encrypted import send_encrypted
from spegel_consul.zerocopy.position import Position
from spegel_consul.zerocopy.send import STALL, Truncated
from spegel_consul.zerocopy.small_spool import SmallSpool
from spegel_consul.zerocopy.source import SourceLeft, SourceSlow, Throughput
from spegel_consul.zerocopy.spool import OWN, Spool, SpoolSpace

RANDOM = random.Random(19)
DATA = RANDOM.randbytes(3_000_001)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority.make(directory)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*authority.issue(directory, "node", "127.0.0.1"))
    client = ssl.create_default_context(cafile=authority.path)
    return server, client


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
End = SecureSocket | PlainEnd


async def shaken(contexts: Contexts) -> tuple[SecureSocket, SecureSocket]:
    """The server's side and the client's."""
    sockets = trio.socket.socketpair()
    server = SecureSocket(sockets[0], contexts[0], server_side=True)
    client = SecureSocket(sockets[1], contexts[1], name="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.do_handshake)
        nursery.start_soon(client.do_handshake)
    return server, client


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


kinds = pytest.mark.parametrize("kind", ["plain", "server", "client"])


async def read(end: End, count: int, most: int = SLICE) -> bytes:
    got = bytearray()
    buffer = memoryview(bytearray(most))
    while len(got) < count:
        try:
            here = end.read_now(buffer[: min(most, count - len(got))])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(end.polled)
            continue
        if not here:
            break
        got += buffer[:here]
    return bytes(got)


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
            got = b""
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


# files


@pytest.fixture
def file(tmp_path: Path) -> Any:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened


PARTS = [(0, len(DATA)), (0, 100), (5, 5), (17, SLICE + 17), (1, 1_000_000), (1_500_000, len(DATA))]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(("start", "stop"), PARTS)
async def test_a_part_of_a_file(
    contexts: Contexts, file: Any, start: int, stop: int, cold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cold:
        preadv = os.preadv

        def not_in_memory(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            if flags & os.RWF_NOWAIT:
                raise BlockingIOError
            return preadv(fd, buffers, offset, flags)

        monkeypatch.setattr(os, "preadv", not_in_memory)
    monkeypatch.setattr(send_module, "_IN_A_ROW", 1 << 20)
    server, client = await shaken(contexts)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"head", file.fileno(), start, stop, counts.append)
        assert await read(client, 4 + stop - start) == b"head" + DATA[start:stop]
    assert counts == [stop - start]
    server.close()
    client.close()


@pytest.mark.parametrize("size", [2_000_000, 500_000])
async def test_a_file_that_is_shorter_than_it_was(contexts: Contexts, file: Any, size: int) -> None:
    os.truncate(file.name, size)
    server, client = await shaken(contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, client, len(DATA))
        with pytest.raises(Truncated):
            await send_encrypted(server, b"", file.fileno(), size - 1000, size + 1000, lambda _: None)
        with pytest.raises(Truncated):
            await send_encrypted(server, b"", file.fileno(), 0, len(DATA), lambda _: None)
        server.close()
    client.close()


def limited(monkeypatch: pytest.MonkeyPatch) -> trio.CapacityLimiter:
    """A limiter of this test's own, because a thread that outlives its event loop never gives its token back."""
    threads = trio.CapacityLimiter(8)
    monkeypatch.setattr(send_module, "_threads", threads)
    return threads


async def test_a_slow_client_holds_no_thread(contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = limited(monkeypatch)
    server, client = await shaken(contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"", file.fileno(), 0, len(DATA), lambda _: None)
        with trio.fail_after(10):
            while not server.unsent or threads.borrowed_tokens:
                await trio.sleep(0.01)
        assert await read(client, len(DATA)) == DATA
    server.close()
    client.close()


async def test_a_disk_that_hangs_keeps_nobody_waiting(
    contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def hanging(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if offset >= 1 << 20:
            hangs.set()
            goes_on.wait(60)
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", hanging)
    threads = limited(monkeypatch)
    server, client = await shaken(contexts)
    counts: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_encrypted, server, b"", file.fileno(), 0, len(DATA), counts.append)
        assert await read(client, 1 << 20) == DATA[: 1 << 20]
        with trio.fail_after(10):
            while not hangs.is_set():
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    assert counts == [1 << 20]
    server.close()
    goes_on.set()
    with trio.fail_after(10):
        while threads.borrowed_tokens:
            await trio.sleep(0.005)
    # what the thread read later was sent to nobody
    assert await read(client, 100) == b""
    client.close()


# bodies


class Client:
    """Reads all that comes, over TLS or in plain text."""

    def __init__(
        self,
        nursery: trio.Nursery,
        sink: SecureSocket | trio.socket.SocketType,
        near: SecureSocket | trio.socket.SocketType,
    ) -> None:
        self.sink = sink
        self._near = near
        self.received = b""
        self.ended = trio.Event()
        nursery.start_soon(self._read)

    async def _read(self) -> None:
        self.received = await read(end_of(self._near), 1 << 30)
        self._near.close()
        self.ended.set()

    async def end(self) -> bytes:
        self.sink.close()
        await self.ended.wait()
        return self.received


async def client(kind: str, contexts: Contexts, nursery: trio.Nursery) -> Client:
    if kind == "secure":
        return Client(nursery, *await shaken(contexts))
    return Client(nursery, *trio.socket.socketpair())


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
