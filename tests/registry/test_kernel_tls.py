# On most kernels this shows that such connections go on in this process. `make ktls` has one that encrypts.

"""A server whose connections the kernel encrypts, or would if it could, and clients with OpenSSL in their process."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from lab.certificates import Authority

from spegel_consul.http.peer_tls import Encryption
from spegel_consul.http.tls import Tls
from spegel_consul.registry.mirror.mirror_peers import MirrorSettings
from spegel_consul.zerocopy import send
from spegel_consul.zerocopy.encrypted import kernel_tls
from spegel_consul.zerocopy.encrypted.kernel_socket import KernelSocket, WiredSocket
from spegel_consul.zerocopy.encrypted.kernel_tls import KERNEL

from .conftest import head, open_files
from .test_tls_connections import (
    ALL,
    ASKER,
    HOLDER,
    LAYER,
    MIDDLE,
    REQUIRE,
    SMALL,
    TlsPeer,
    answer_of,
    asking,
    authority,
    path_of,
    tls,
    trusting,
)

__all__ = ["authority", "tls", "trusting"]

IN_KERNEL = "KTLS" in os.environ


def number(file: Any) -> int:
    return os.fstat(file if isinstance(file, int) else file.fileno()).st_ino


class Watched:
    """The server's connections, and the sockets that sendfile and splice have seen."""

    def __init__(self) -> None:
        self.kinds: list[type] = []
        self.numbers: set[int] = set()
        self.moved: set[int] = set()


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """OpenSSL begins on the socket, whether the kernel can encrypt or not; at the end no connection is left."""
    assert kernel_tls._takes_keys() or not IN_KERNEL
    monkeypatch.setattr(send, "_resident", lambda fd, start, stop: True)  # a file system in memory can't say it
    monkeypatch.setattr(KERNEL, "_supported", True)
    monkeypatch.setattr(KERNEL, "_most", 100)
    monkeypatch.setattr(KERNEL, "_standing", 0)
    monkeypatch.setattr(KERNEL, "encrypted", None)
    found = Watched()
    made, sendfile, splice = WiredSocket.__init__, os.sendfile, os.splice

    def init(self: WiredSocket, sock: Any, *args: Any) -> None:
        found.kinds.append(type(self))
        found.numbers.add(number(sock))
        made(self, sock, *args)

    def watched_sendfile(out: int, fd: int, *args: Any) -> int:
        found.moved.add(number(out))
        return sendfile(out, fd, *args)

    def watched_splice(src: int, dst: int, *args: Any, **kwargs: Any) -> int:
        found.moved.update((number(src), number(dst)))
        return splice(src, dst, *args, **kwargs)

    monkeypatch.setattr(WiredSocket, "__init__", init)
    monkeypatch.setattr(os, "sendfile", watched_sendfile)
    monkeypatch.setattr(os, "splice", watched_splice)
    yield found
    assert set(found.kinds) == {KernelSocket if IN_KERNEL else WiredSocket}
    assert KERNEL.encrypted is IN_KERNEL
    if not IN_KERNEL:
        assert not found.numbers & found.moved


def by_kernel(node: Any, watched: Watched) -> None:
    """Files of the fast path have left by sendfile if the kernel encrypts."""
    if IN_KERNEL and node.fast_path is not None:
        assert watched.numbers & watched.moved


async def ended(node: Any) -> None:
    """Stop the node, and wait until no connection is left."""
    node.stop.set()
    with trio.fail_after(30):
        while KERNEL._standing:
            await trio.sleep(0.01)


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *fields, "", ""]).encode()


async def test_many_requests_on_one_connection(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, watched: Watched
) -> None:
    node = await start_node(tls=tls())
    for data in (LAYER, MIDDLE, SMALL):
        node.store.add_content(data)
    async with asking(node, trusting) as stream:
        for _ in range(2):
            for data in (SMALL, LAYER, MIDDLE):
                await stream.send_all(request(path_of(data)))
                status, _, body = await answer_of(stream)
                assert (status, body == data) == (200, True)
            for first, last in ((0, 0), (1000, 2_000_000), (len(LAYER) - 5, len(LAYER) - 1)):
                await stream.send_all(request(path_of(LAYER), f"Range: bytes={first}-{last}"))
                status, fields, body = await answer_of(stream)
                assert (status, body == LAYER[first : last + 1]) == (206, True)
                assert fields["content-range"] == f"bytes {first}-{last}/{len(LAYER)}"
            await stream.send_all(request(path_of(LAYER), "Range: bytes=0-9,2000000-2500000"))
            status, _, body = await answer_of(stream)
            assert status == 206
            assert LAYER[2_000_000:2_500_001] in body
    by_kernel(node, watched)
    assert len(watched.kinds) == 1
    await ended(node)


@pytest.mark.parametrize("how", ["pages that are not in memory", "a client that reads slowly", "a limit"])
async def test_files_that_leave_slowly(
    start_node: Any,
    tls: Callable[..., Tls],
    trusting: ssl.SSLContext,
    watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    if how == "pages that are not in memory":
        monkeypatch.setattr(send, "_resident", lambda fd, start, stop: False)
    if how == "a limit":
        monkeypatch.setattr(send, "_ALONE", 100_000)
        monkeypatch.setattr(send, "_CHUNK", 70_000)
    node = await start_node(tls=tls())
    node.store.add_content(LAYER)
    async with asking(node, trusting) as stream:
        if how == "a client that reads slowly":
            stream.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 17)
        for _ in range(2):
            await stream.send_all(request(path_of(LAYER)))
            data = b""
            while len(data) < len(LAYER) // 2:
                data += await stream.receive_some(20_000)
                if how == "a client that reads slowly" and len(data) < 500_000:
                    await trio.sleep(0.02)
            top, _, body = data.partition(b"\r\n\r\n")
            assert top.startswith(b"HTTP/1.1 200")
            while len(body) < len(LAYER):
                body += await stream.receive_some()
            assert body == LAYER
    by_kernel(node, watched)
    await ended(node)


async def test_a_client_that_leaves_in_the_middle(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, watched: Watched
) -> None:
    node = await start_node(tls=tls())
    node.store.add_content(LAYER)
    before = open_files()
    for _ in range(3):
        async with asking(node, trusting) as stream:
            stream.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await stream.send_all(request(path_of(LAYER)))
            assert await stream.receive_some(100)
    async with asking(node, trusting) as stream:
        await stream.send_all(request(path_of(LAYER)))
        assert (await answer_of(stream))[2] == LAYER
    with trio.fail_after(30):
        while KERNEL._standing or open_files() > before:
            await trio.sleep(0.01)
    by_kernel(node, watched)
    await ended(node)


async def test_a_stranger_who_does_not_end_the_handshake(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext
) -> None:
    node = await start_node(host=HOLDER, tls=tls(REQUIRE))
    node.store.add_content(SMALL)
    before = open_files()
    for text in (b"\x16", b"\x16\x03\x01\x00\x05hello", b"\x16" * 1000):
        async with await trio.open_tcp_stream(*node.address) as stream:
            await stream.send_all(text)
    async with asking(node, trusting) as encrypted:
        await encrypted.send_all(request(path_of(SMALL)))
        assert (await answer_of(encrypted))[2] == SMALL
    with trio.fail_after(30):
        while KERNEL._standing or open_files() > before:
            await trio.sleep(0.01)
    await ended(node)


@pytest.mark.parametrize("encryption", [ALL, REQUIRE])
@pytest.mark.parametrize("verify_first", [0, 32 << 20], ids=["streamed", "held"])
async def test_mirrored_bodies(
    start_node: Any,
    tls: Callable[..., Tls],
    trusting: ssl.SSLContext,
    watched: Watched,
    encryption: Encryption,
    verify_first: int,
) -> None:
    holder = await start_node(host=HOLDER, tls=tls(encryption))
    asker = await start_node(host=ASKER, tls=tls(encryption), settings=MirrorSettings(verify_first=verify_first))
    for data in (LAYER, MIDDLE, SMALL):
        holder.store.add_content(data)
    asker.router.knows(holder)
    async with asking(asker, trusting) as stream:
        for data in (LAYER, MIDDLE, SMALL) * 2:
            await stream.send_all(request(path_of(data)))
            status, _, body = await answer_of(stream)
            assert (status, body == data) == (200, True)
    by_kernel(holder, watched)
    holder.stop.set()
    await ended(asker)


async def test_the_head_of_a_body_does_not_wait_for_the_body(
    start_node: Any, start_peer: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext
) -> None:
    """The kernel would keep it for as long as it is told that more follows."""

    class Late(TlsPeer):
        async def _handle(self, plain: trio.SocketStream) -> None:
            stream = trio.SSLStream(plain, self._context, server_side=True, https_compatible=True)
            async with plain:
                await stream.receive_some(1 << 16)
                await stream.send_all(self._answer)
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        peer = Late(tls().server(), head(200, len(LAYER), "Content-Type: application/octet-stream"), "")
        await nursery.start(peer.run)
        asker = await start_node(host=ASKER, tls=tls(REQUIRE), settings=MirrorSettings(verify_first=0))
        asker.router.knows(peer.address)
        async with asking(asker, trusting) as stream:
            await stream.send_all(request(path_of(LAYER)))
            with trio.fail_after(30):
                assert await stream.receive_some(1 << 16)
        nursery.cancel_scope.cancel()
    await ended(asker)


async def test_the_end_is_said(start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext) -> None:
    """Without close_notify Trio's stream raises BrokenResourceError here."""
    node = await start_node(tls=tls())
    node.store.add_content(LAYER)
    for path in (path_of(LAYER), path_of(LAYER) + "&a=%20"):
        plain = await trio.open_tcp_stream(*node.address)
        stream = trio.SSLStream(plain, trusting, server_hostname="127.0.0.1")
        await stream.send_all(request(path, "Connection: close"))
        assert (await answer_of(stream))[2] == LAYER
        assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)
    await ended(node)


@pytest.mark.parametrize("data", [SMALL, LAYER], ids=["small", "large"])
async def test_a_client_that_has_said_all(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, data: bytes
) -> None:
    node = await start_node(tls=tls())
    node.store.add_content(data)
    async with asking(node, trusting) as stream:
        await stream.send_all(request(path_of(data)))
        stream.transport_stream.socket.shutdown(socket.SHUT_WR)
        assert (await answer_of(stream))[2] == data
        assert await stream.receive_some() == b""
    await ended(node)


async def test_a_record_that_was_changed_is_refused_with_an_alert(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext
) -> None:
    node = await start_node(tls=tls())
    async with asking(node, trusting) as stream:
        await stream.do_handshake()
        await stream.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError) as found:
            await stream.receive_some()
        assert "ALERT_BAD_RECORD_MAC" in str(found.value.__cause__)
    await ended(node)


async def test_an_older_tls(start_node: Any, tls: Callable[..., Tls], authority: Authority, watched: Watched) -> None:
    """Of TLS 1.2 the kernel has both directions."""
    node = await start_node(tls=tls())
    for data in (LAYER, SMALL):
        node.store.add_content(data)
    context = ssl.create_default_context(cafile=authority.path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    for cipher in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"):
        context.set_ciphers(cipher)
        plain = await trio.open_tcp_stream(*node.address)
        stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1")
        for data in (LAYER, SMALL, LAYER):
            await stream.send_all(request(path_of(data)))
            assert (await answer_of(stream))[2] == data
        await stream.send_all(request(path_of(SMALL), "Connection: close"))
        assert (await answer_of(stream))[2] == SMALL
        assert await stream.receive_some() == b""
        await trio.aclose_forcefully(stream)
    by_kernel(node, watched)
    await ended(node)
    if not IN_KERNEL:  # this version says nothing about the tested one
        assert KERNEL.encrypted is None
        KERNEL.encrypted = False


async def test_a_client_that_wants_new_keys(
    start_node: Any, tls: Callable[..., Tls], authority: Authority, tmp_path: Path
) -> None:
    """Python's ssl can't ask for them: `openssl s_client` does, for its line K."""
    node = await start_node(tls=tls())
    for data in (LAYER, SMALL):
        node.store.add_content(data)
    address = f"{node.address[0]}:{node.address[1]}"
    process = await trio.lowlevel.open_process(
        ["openssl", "s_client", "-connect", address, "-CAfile", authority.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    said = b""

    async def until(text: bytes, times: int = 1) -> None:
        nonlocal said
        with trio.fail_after(60):
            while said.count(text) < times:
                said += (piece := await process.stdout.receive_some(1 << 18))
                assert piece, said[-2000:]

    try:
        await until(b"Verify return code")
        asked = 0
        for data in (SMALL, LAYER):
            for _ in range(20):
                await process.stdin.send_all(b"K\n")
                await until(b"KEYUPDATE", asked := asked + 1)
            await process.stdin.send_all(request(path_of(data)))
            await until(data[-100:])
            assert data in said
    finally:
        process.kill()
        await process.wait()
        await process.stdin.aclose()
        await process.stdout.aclose()
    await ended(node)


async def test_one_connection_without_the_kernel_is_enough(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, watched: Watched
) -> None:
    """Such a connection costs more than one in memory, so the next one is one in memory."""
    node = await start_node(tls=tls())
    node.store.add_content(SMALL)
    for _ in range(3):
        async with asking(node, trusting) as stream:
            await stream.send_all(request(path_of(SMALL)))
            assert (await answer_of(stream))[2] == SMALL
    assert len(watched.kinds) == (3 if IN_KERNEL else 1)
    await ended(node)


async def test_not_more_connections_than_files_allow(
    start_node: Any, tls: Callable[..., Tls], trusting: ssl.SSLContext, watched: Watched, monkeypatch: Any
) -> None:
    """Each has two files more than one in memory."""
    monkeypatch.setattr(KERNEL, "_most", 1)
    node = await start_node(tls=tls())
    node.store.add_content(LAYER)
    async with asking(node, trusting) as one, asking(node, trusting) as two:
        for stream in (one, two, one):
            await stream.send_all(request(path_of(LAYER)))
            assert (await answer_of(stream))[2] == LAYER
    assert len(watched.kinds) == 1
    await ended(node)
