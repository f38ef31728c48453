"""The gate between clear text and the kernel: no connection passes that the kernel has not answered for."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from spegel_consul.http.server.connection import Link
from spegel_consul.zerocopy.encrypted import kernel_socket, kernel_tls
from spegel_consul.zerocopy.encrypted.kernel_outlet import KernelOutlet
from spegel_consul.zerocopy.encrypted.kernel_socket import (
    KernelSocket,
    NotEncrypting,
    WiredSocket,
    _alert_of,
    accept_in_kernel,
)
from spegel_consul.zerocopy.encrypted.kernel_tls import KERNEL, KernelTls, encrypts
from spegel_consul.zerocopy.encrypted.secure_outlet import SecureOutlet
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.encrypted.wire import Wire
from tests.zerocopy.encrypted_ends import DATA, Contexts, contexts, file, read

__all__ = ["contexts", "file"]

AES = struct.pack("=HH", 0x0304, 52)


def refused(number: int) -> Callable[..., bytes]:
    def getsockopt(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    return getsockopt


NO_PROOF: dict[str, Callable[..., Any]] = {
    **{errno.errorcode[number]: refused(number) for number in (errno.EBUSY, errno.EOPNOTSUPP, errno.ENOPROTOOPT)},
    "nothing": lambda *_: b"",
    "less": lambda *_: AES[:3],
    "more": lambda *_: AES + b"\0",
    "no cipher": lambda *_: struct.pack("=HH", 0x0304, 0),
    "no version": lambda *_: bytes(4),
    "unknown version": lambda *_: struct.pack("=HH", 0x0305, 52),
}


class Answering:
    """A socket whose kernel says ``answer``."""

    def __init__(self, answer: Callable[..., bytes]) -> None:
        self.getsockopt = answer


@pytest.mark.parametrize("answer", NO_PROOF.values(), ids=list(NO_PROOF))
def test_only_one_answer_is_a_proof(answer: Callable[..., bytes]) -> None:
    assert encrypts(Answering(lambda *_: AES))
    assert encrypts(Answering(lambda *_: struct.pack("=HH", 0x0303, 51)))
    assert not encrypts(Answering(answer))


async def tcp_pair() -> tuple[trio.socket.SocketType, trio.socket.SocketType]:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        near = trio.socket.socket()
        await near.connect(listener.getsockname())
        far, _ = await listener.accept()
        return far, near


async def begun_on_the_socket(contexts: Contexts) -> tuple[WiredSocket, SecureSocket]:
    """The server's side, which OpenSSL began on the socket, and the client's."""
    far, near = await tcp_pair()
    client = SecureSocket(near, contexts[1], name="127.0.0.1")
    found: list[WiredSocket | None] = []

    async def accept() -> None:
        found.append(await accept_in_kernel(far, contexts[0]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(client.do_handshake)
    assert found[0] is not None
    return found[0], client


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KERNEL, "_supported", True)
    monkeypatch.setattr(KERNEL, "encrypted", None)
    monkeypatch.setattr(kernel_socket, "OP_ENABLE_KTLS", 0)  # so that no kernel gets keys


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("answer", NO_PROOF.values(), ids=list(NO_PROOF))
async def test_a_connection_without_proof_never_meets_sendfile(
    contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., bytes]
) -> None:
    """It would send clear text."""
    met: list[str] = []
    for name in ("sendfile", "splice"):
        monkeypatch.setattr(os, name, lambda *_, name=name, **__: met.append(name) or 0)

    def getsockopt(self: Any, level: int, *args: Any) -> Any:
        return answer() if level == kernel_tls.SOL_TLS else self._sock.getsockopt(level, *args)

    monkeypatch.setattr(trio._socket._SocketType, "getsockopt", getsockopt, raising=False)  # type: ignore[attr-defined]
    server, client = await begun_on_the_socket(contexts)
    assert not isinstance(server, KernelSocket)
    with pytest.raises(NotEncrypting):
        KernelSocket(server._sock, server._tls, server._outgoing)  # type: ignore[arg-type]
    assert not hasattr(server, "takes_clear_text")
    assert not hasattr(server, "fileno")
    outlet = Link(server._sock, local=False, secure=server).outlet(b"head")
    assert isinstance(outlet, SecureOutlet)
    sent: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outlet.file, file.fileno(), 0, len(DATA), sent.append)
        assert await read(client, 4 + len(DATA)) == b"head" + DATA
    assert sent == [len(DATA)]
    assert not met
    server.close()
    client.close()
    assert KERNEL.encrypted is False
    assert not KERNEL.wanted


@pytest.mark.usefixtures("undecided")
async def test_an_openssl_that_encrypts_nothing_is_found_out(contexts: Contexts) -> None:
    """OpenSSL would leave it to the kernel, and the kernel would not know: then nothing is sent at all."""
    server, client = await begun_on_the_socket(contexts)
    wire = server._outgoing
    assert isinstance(wire, Wire)
    server._tls = Clear(server._tls.fileno())  # type: ignore[assignment,union-attr]
    with pytest.raises(ssl.SSLError, match="not encrypted"):
        await server.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    server.close()
    assert await read(client, 100) == b""
    client.close()


class Clear:
    """An OpenSSL that writes what it is given."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: memoryview) -> int:
        return os.write(self._fd, data)


@pytest.mark.usefixtures("undecided")
async def test_clear_text_goes_to_a_socket_with_proof(
    contexts: Contexts, file: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What such a socket would send on a kernel that does not encrypt, after an answer that says that it does."""
    monkeypatch.setattr("spegel_consul.zerocopy.encrypted.kernel_socket.encrypts", lambda sock: True)
    server, client = await begun_on_the_socket(contexts)
    outlet = Link(client._sock, local=False, secure=server).outlet(b"head ")
    assert isinstance(outlet, KernelOutlet)
    await outlet.begin()
    await outlet.put(b"body ")
    sent: list[int] = []
    await outlet.file(file.fileno(), 0, 1000, sent.append)
    await server.send_all(b" end")
    assert sent == [1000]
    data = b""
    while not data.endswith(b" end"):
        data += await client._sock.recv(1 << 16)
    assert data.endswith(b"head body " + DATA[:1000] + b" end")  # tickets are before it
    with trio.CancelScope() as scope:
        scope.cancel()
        await outlet.file(file.fileno(), 0, len(DATA) * 20, sent.append)
    assert scope.cancelled_caught
    # nothing may follow what an abandoned thread sends
    with pytest.raises(trio.ClosedResourceError):
        server.encrypt(b"x")
    server.close()
    client._sock.close()


async def test_openssl_may_give_keys_to_the_kernel(contexts: Contexts) -> None:
    server, client = await begun_on_the_socket(contexts)
    assert contexts[0].options & kernel_tls.OP_ENABLE_KTLS
    server.close()
    client.close()


@pytest.mark.usefixtures("undecided")
async def test_a_process_without_files_has_no_such_connection(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, near = await tcp_pair()
    for name in ("socketpair", "fromfd"):
        with monkeypatch.context() as patch:
            patch.setattr(socket, name, refused(errno.EMFILE))
            assert await accept_in_kernel(far, contexts[0]) is None
    far.close()
    near.close()


class NoKernel:
    """A socket of a kernel without the module."""

    def __init__(self, real: type[socket.socket]) -> None:
        self._real = real

    def __call__(self, *args: Any) -> Any:
        raise OSError(errno.EMFILE, "no file")


def test_the_probe_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", NoKernel(socket.socket))
    assert not kernel_tls._takes_keys()
    kernel = KernelTls()
    assert not kernel.supported
    assert not kernel.wanted
    assert kernel.encrypted is False


@pytest.mark.parametrize("known", [False, True])
def test_the_kernel_is_asked_once(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    asked: list[int] = []
    monkeypatch.setattr(kernel_tls, "_takes_keys", lambda: asked.append(1) or known)
    kernel = KernelTls()
    for _ in range(3):
        assert kernel.wanted is known
    assert len(asked) == 1


def test_what_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_tls, "_takes_keys", lambda: True)
    kernel = KernelTls()
    kernel.found(False, "TLS_CHACHA20_POLY1305_SHA256")  # which a client may choose
    assert (kernel.encrypted, kernel.wanted) == (None, True)
    kernel.found(True, "TLS_AES_256_GCM_SHA384")
    kernel.found(False, "TLS_CHACHA20_POLY1305_SHA256")
    assert (kernel.encrypted, kernel.wanted) == (True, True)
    kernel._most = 1
    kernel.begun()
    assert not kernel.wanted
    kernel.ended()
    assert kernel.wanted
    kernel.found(False, "TLS_AES_128_GCM_SHA256")
    assert (kernel.encrypted, kernel.wanted) == (False, False)


@pytest.mark.parametrize(
    ("written", "alert"),
    [
        (b"", b""),
        (b"\x01\x00", b"\x01\x00"),
        (b"\x02\x14\x01\x00", b"\x02\x14"),
        (b"\x18\x00\x00\x01\x00" * 3, b""),
        (b"\x18\x00\x00\x01\x00\x02\x14", b"\x02\x14"),
    ],
)
def test_new_keys_are_no_alert(written: bytes, alert: bytes) -> None:
    """Their answer would be close_notify, if its first bytes were taken for an alert."""
    assert _alert_of(written) == alert


def test_a_wire_takes_what_openssl_has_at_once(tmp_path: Path) -> None:
    wire = Wire()
    opened = os.open(tmp_path, os.O_RDONLY)
    wire.replace(opened)
    assert (wire.pending, wire.read()) == (0, b"")
    assert wire.write(DATA[: 1 << 15]) == 1 << 15
    assert os.read(opened, 1 << 16) == DATA[: 1 << 15]
    os.write(opened, DATA[: 33 << 10])
    assert wire.pending == 33 << 10
    assert wire.read() == DATA[: 33 << 10]
    with pytest.raises(OSError, match="buffer"):
        wire.write(bytes(64 << 20))
    wire.close()
    os.close(opened)
