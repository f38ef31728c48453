"""Ends of connections, with TLS and without, for the tests of what they carry."""

from __future__ import annotations

import random
import ssl
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.certificates import Authority

from spegel_consul.zerocopy.encrypted import send_encrypted as send_module
from spegel_consul.zerocopy.encrypted.plain_end import PlainEnd, end_of
from spegel_consul.zerocopy.encrypted.secure_socket import SLICE, SecureSocket

RANDOM = random.Random(19)
DATA = RANDOM.randbytes(3_000_001)


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


@pytest.fixture
def file(tmp_path: Path) -> Any:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened


def limited(monkeypatch: pytest.MonkeyPatch) -> trio.CapacityLimiter:
    """A limiter of this test's own, because a thread that outlives its event loop never gives its token back."""
    threads = trio.CapacityLimiter(8)
    monkeypatch.setattr(send_module, "_threads", threads)
    return threads


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
        self.received = bytearray()
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
