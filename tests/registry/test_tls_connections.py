"""Requests and answers over TLS: the same as in plain text, cut where they are cut, and never moved by the kernel."""

from __future__ import annotations

import os
import random
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from lab.certificates import Authority

from spegel_consul.http.peer_client import PeerClient, PeerLimits
from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.tls import Tls, TlsFiles
from spegel_consul.oci.digest import Digest
from spegel_consul.peers import PeerError
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket

from .conftest import head

CONTENT = random.Random(2)
LAYER = CONTENT.randbytes(3_000_001)
SMALL = CONTENT.randbytes(10_000)
MIDDLE = CONTENT.randbytes(700_000)
ALL, REQUIRE = Encryption.ALL, Encryption.REQUIRE
HOLDER, ASKER = "127.0.0.2", "127.0.0.3"


def path_of(data: bytes) -> str:
    return f"/v2/library/app/blobs/{Digest.of(data)}?ns=docker.io"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@pytest.fixture
def tls(authority: Authority, tmp_path: Path) -> Callable[..., Tls]:
    cert, key = authority.issue(tmp_path, "node", "127.0.0.1", HOLDER, ASKER)

    def make(encryption: Encryption = ALL) -> Tls:
        return Tls(TlsFiles(cert, key, authority.path), encryption)

    return make


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.path)


@asynccontextmanager
async def asking(node: Any, context: ssl.SSLContext) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    """Trio's own TLS, which is not the one under test."""
    plain = await trio.open_tcp_stream(*node.address)
    stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1", https_compatible=True)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def answer_of(stream: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, fields and body; the body is shorter than it should be if the connection ends."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += (piece := await stream.receive_some(1 << 16))
        assert piece, f"the connection ended after {data!r}"
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    while len(body) < int(fields["content-length"]):
        try:
            piece = await stream.receive_some(1 << 18)
        except trio.BrokenResourceError:
            break
        if not piece:
            break
        body += piece
    return int(first.split(" ")[1]), fields, body


REQUESTS = [
    ("GET", LAYER, {}),
    ("GET", MIDDLE, {}),
    ("GET", SMALL, {}),
    ("HEAD", LAYER, {}),
    ("HEAD", SMALL, {}),
    ("GET", LAYER, {"range": "bytes=1000-2000000"}),
    ("GET", LAYER, {"range": "bytes=-5"}),
    ("GET", LAYER, {"range": "bytes=0-9,2000000-2500000"}),
    ("GET", SMALL, {"range": "bytes=0-9,20-29"}),
    ("GET", LAYER, {"range": "bytes=9999999-"}),
    ("GET", b"unknown", {}),
]


@pytest.mark.parametrize("mirrored", [False, True])
async def test_answers_are_those_of_a_plain_connection(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, mirrored: bool
) -> None:
    def comparable(answer: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
        mark = re.search(r"boundary=(\S+)", answer.headers.get("content-type", ""))
        boundary = mark[1] if mark else "no boundary"
        skipped = ("date", "x-spegel-served-by")
        fields = [(name, value.replace(boundary, "")) for name, value in answer.headers.items() if name not in skipped]
        return answer.status_code, sorted(fields), answer.content.replace(boundary.encode(), b"")

    found = []
    for encryption in (None, ALL):
        certificates = tls() if encryption is not None else None
        settings = MirrorSettings(verify_first=1 << 20)  # some are held, some streamed
        holder = await start_node(tls=certificates)
        for data in (LAYER, MIDDLE, SMALL):
            holder.store.add_content(data)
        node = holder
        if mirrored:
            node = await start_node(tls=certificates, settings=settings)
            node.router.knows(holder)
        answers = []
        async with httpx.AsyncClient(verify=trusting, trust_env=False) as client:
            for method, data, fields in REQUESTS * 2:
                answers.append(comparable(await client.request(method, node.url + path_of(data), headers=fields)))
        found.append(answers)
        if node.fast_path is not None:
            assert node.fast_path.taken >= len(REQUESTS)
    assert found[0] == found[1]


@pytest.mark.parametrize("encryption", [ALL, REQUIRE])
@pytest.mark.parametrize("verify_first", [0, 32 << 20], ids=["streamed", "held"])
async def test_the_kernel_moves_no_byte_of_an_encrypted_connection(
    start_node: Any,
    tls: Callable[..., Tls],
    trusting: ssl.SSLContext,
    encryption: Encryption,
    verify_first: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not encrypt here, so what it sends would be clear text."""
    encrypted: set[int] = set()
    moved: set[int] = set()

    def number(file: Any) -> int:
        return os.fstat(file if isinstance(file, int) else file.fileno()).st_ino

    made = SecureSocket.__init__

    def init(self: SecureSocket, sock: Any, *args: Any, **kwargs: Any) -> None:
        made(self, sock, *args, **kwargs)
        encrypted.add(number(sock))

    sendfile, splice = os.sendfile, os.splice

    def watched_sendfile(out: int, fd: int, *args: Any) -> int:
        moved.add(number(out))
        return sendfile(out, fd, *args)

    def watched_splice(src: int, dst: int, *args: Any, **kwargs: Any) -> int:
        moved.update((number(src), number(dst)))
        return splice(src, dst, *args, **kwargs)

    monkeypatch.setattr(SecureSocket, "__init__", init)
    monkeypatch.setattr(os, "sendfile", watched_sendfile)
    monkeypatch.setattr(os, "splice", watched_splice)
    holder = await start_node(host=HOLDER, tls=tls(encryption))
    asker = await start_node(host=ASKER, tls=tls(encryption), settings=MirrorSettings(verify_first=verify_first))
    for data in (LAYER, MIDDLE, SMALL):
        holder.store.add_content(data)
    asker.router.knows(holder)
    local = httpx.AsyncHTTPTransport(local_address=ASKER, verify=trusting)
    async with httpx.AsyncClient(verify=trusting, trust_env=False) as other, httpx.AsyncClient(transport=local) as own:
        for _ in range(2):
            for data in (LAYER, MIDDLE, SMALL):
                direct = await other.get(f"https://{HOLDER}:{holder.address[1]}{path_of(data)}")
                assert direct.content == data
                scheme = "https" if encryption is ALL else "http"
                through = await own.get(f"{scheme}://{ASKER}:{asker.address[1]}{path_of(data)}")
                assert through.content == data
    assert encrypted
    assert not encrypted & moved
    if encryption is REQUIRE and verify_first and asker.fast_path is not None:
        assert moved  # the runtime's own connection is plain, and gets held bodies by sendfile


@pytest.mark.parametrize("data", [SMALL, MIDDLE, LAYER], ids=["small", "middle", "large"])
async def test_a_client_that_has_said_all(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, data: bytes
) -> None:
    """It closes its direction, with close_notify or without, and reads."""
    node = await start_node(tls=tls())
    node.store.add_content(data)
    for path in (path_of(data), path_of(data) + "&a=%20"):
        async with asking(node, trusting) as stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            stream.transport_stream.socket.shutdown(socket.SHUT_WR)
            status, _, body = await answer_of(stream)
            assert (status, body == data) == (200, True)
            assert await stream.receive_some() == b""


async def test_a_large_upload_is_refused_with_an_answer(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext
) -> None:
    """The client sends on after the answer, and bytes that nobody reads would turn the close into a reset."""
    node = await start_node(tls=tls())
    async with asking(node, trusting) as stream:
        text = f"PUT /v2/library/app/blobs/uploads/1 HTTP/1.1\r\nHost: x\r\nContent-Length: {64 << 20}\r\n\r\n"
        await stream.send_all(text.encode())
        sent = trio.Event()

        async def send() -> None:
            try:
                for _ in range(64):
                    await stream.send_all(bytes(1 << 20))
            except trio.BrokenResourceError:
                pass
            sent.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            status, _, body = await answer_of(stream)
            assert status in (404, 405)
            assert b"errors" in body
            nursery.cancel_scope.cancel()


async def test_plain_text_at_a_port_that_speaks_tls_only(start_node: Any, tls: Callable[..., Tls]) -> None:
    node = await start_node(tls=tls())
    with trio.fail_after(5):
        for text in (
            b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\r\n",
            b"\0" * 100,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            async with await trio.open_tcp_stream(*node.address) as stream:
                await stream.send_all(text)
                await stream.send_eof()
                got = b""
                try:
                    while data := await stream.receive_some():
                        got += data
                except trio.BrokenResourceError:
                    pass
                assert b"HTTP/1" not in got


class TlsPeer:
    """A registry that answers each request over TLS with ``answer``, and ends the connection as ``end`` says."""

    def __init__(self, context: ssl.SSLContext, answer: bytes, end: str) -> None:
        self._context, self._answer, self._end = context, answer, end
        self.address = ("", 0)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host=HOLDER)
        self.address = listeners[0].socket.getsockname()
        task_status.started()
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, plain: trio.SocketStream) -> None:
        stream = trio.SSLStream(plain, self._context, server_side=True, https_compatible=True)
        try:
            while await stream.receive_some(1 << 16):
                await stream.send_all(self._answer)
                if self._end == "close_notify":
                    await stream.aclose()
                elif self._end == "within a record":
                    await plain.send_all(b"\x17\x03\x03\x40\x00" + bytes(1000))
                    await plain.aclose()
                elif self._end == "no close_notify":
                    await plain.aclose()
                else:
                    continue
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(plain)


ENDS = ["close_notify", "no close_notify", "within a record"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("verify_first", [0, 32 << 20], ids=["streamed", "held"])
@pytest.mark.parametrize("data", [MIDDLE, LAYER], ids=["middle", "large"])
async def test_a_body_that_was_cut_is_never_complete(
    start_node: Any,
    nursery: trio.Nursery,
    tls: Callable[..., Tls],
    data: bytes,
    verify_first: int,
    end: str,
) -> None:
    """Who can end a connection must not be able to shorten a blob."""
    fields = f"Docker-Content-Digest: {Digest.of(data)}", "Content-Type: application/octet-stream"
    peer = TlsPeer(tls().server(), head(200, len(data), *fields) + data[: len(data) // 2], end)
    await nursery.start(peer.run)
    asker = await start_node(host=ASKER, tls=tls(REQUIRE), settings=MirrorSettings(verify_first=verify_first))
    asker.router.knows(peer.address)
    transport = httpx.AsyncHTTPTransport(verify=False, local_address=ASKER)
    async with httpx.AsyncClient(transport=transport) as client:
        try:
            answer = await client.get(f"http://{ASKER}:{asker.address[1]}{path_of(data)}")
        except (httpx.RemoteProtocolError, httpx.ReadError):
            assert not verify_first
        else:
            assert answer.status_code == 404
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("end", ENDS)
async def test_a_body_without_a_length_is_not_taken(nursery: trio.Nursery, tls: Callable[..., Tls], end: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n" + SMALL
    peer = TlsPeer(tls().server(), answer, end)
    await nursery.start(peer.run)
    client = PeerClient(PeerLimits(), tls(REQUIRE))
    response = await client.request(peer.address, "GET", path_of(SMALL), [])
    assert [piece async for piece in response.chunks()] == []
    assert not client.has_idle(peer.address)
    nursery.cancel_scope.cancel()


async def test_a_connection_is_kept_and_one_that_was_closed_is_not_used(
    nursery: trio.Nursery, tls: Callable[..., Tls]
) -> None:
    peer = TlsPeer(tls().server(), head(200, len(SMALL)) + SMALL, "keep")
    await nursery.start(peer.run)
    client = PeerClient(PeerLimits(), tls(REQUIRE))
    connected = []
    for _ in range(3):
        response = await client.request(peer.address, "GET", "/", [])
        connected.append(response.connected > 0)
        assert b"".join([piece async for piece in response.chunks()]) == SMALL
    assert connected == [True, False, False]
    client.close()
    closing = TlsPeer(tls().server(), head(200, len(SMALL)) + SMALL, "close_notify")
    await nursery.start(closing.run)
    for _ in range(3):
        response = await client.request(closing.address, "GET", "/", [])
        assert b"".join([piece async for piece in response.chunks()]) == SMALL
    client.close()
    nursery.cancel_scope.cancel()


async def test_a_peer_that_stalls_within_a_record(nursery: trio.Nursery, tls: Callable[..., Tls]) -> None:
    class Stalling(TlsPeer):
        async def _handle(self, plain: trio.SocketStream) -> None:
            stream = trio.SSLStream(plain, self._context, server_side=True, https_compatible=True)
            async with plain:
                await stream.receive_some(1 << 16)
                await stream.send_all(self._answer)
                await plain.send_all(b"\x17\x03\x03\x40\x00" + bytes(1000))
                await plain.receive_some()

    peer = Stalling(tls().server(), head(200, len(LAYER)) + LAYER[:1000], "")
    await nursery.start(peer.run)
    client = PeerClient(PeerLimits(stall=0.2), tls(REQUIRE))
    response = await client.request(peer.address, "GET", "/", [])
    with pytest.raises(PeerError) as caught:
        assert [len(piece) async for piece in response.chunks()]
    assert caught.value.hung
    response.discard()
    nursery.cancel_scope.cancel()
