"""``Wire``: the TCP stream below Noise; ``Session``: the encrypted connection between Noise and Yamux.

The writes of both are queued whole and never wait, because a cancelled write would cost Noise a nonce.

The library's Noise session serves the handshake only.  After it, a ``Session`` encrypts and decrypts with the keys of
the handshake: all messages that one read of the socket brought are decrypted together, so a frame costs no task
switch.

A rule about the bytes below Yamux belongs here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.security.noise.io import MAX_PLAINTEXT_LENGTH

from spegel_consul.ring.net.send_queue import Outbox, OutboxFull

_MAX_READ = 1 << 17  # the longest frame of Noise has 64 KiB
_CHUNK = 1 << 16
_LENGTH = 2  # bytes of the length before each message of Noise


class Wire(ReadWriteCloser):
    """The TCP stream below Noise: a write is queued whole at once, a read returns exactly ``n`` bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._out = Outbox()
        self._in = bytearray()
        self._pumping = False

    async def pump(self) -> None:
        while data := await self._out.take():
            self._pumping = True
            await self._stream.send_all(data)
            self._pumping = False
            del data  # released before the wait for the next bytes, which may be long

    def put(self, data: bytes) -> None:
        """Send ``data`` at once as far as the socket takes it, and queue the rest. Raises ConnectionClosedError."""
        if self._out.closed:
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        if not self._pumping and not self._out:
            # at once, because waking the task that pumps costs as much as the call
            with suppress(OSError):  # the task that pumps meets the same error, and ends the connection
                data = data[os.write(self._stream.socket.fileno(), data) :]
            if not data:
                return
        try:
            self._out.put(data)
        except OutboxFull as exc:
            self._out.close()
            raise ConnectionClosedError(str(exc), transport="tcp") from None

    async def write(self, data: bytes) -> None:
        self.put(data)

    async def read(self, n: int | None = None) -> bytes:
        if n is None or n > _MAX_READ:
            raise ConnectionClosedError("a frame exceeds the limit", transport="tcp")
        while len(self._in) < n:
            await self.fill()
        data = bytes(self._in[:n])
        del self._in[:n]
        return data

    async def fill(self) -> None:
        """Wait for more bytes. Raises ConnectionClosedError at the end of the stream."""
        # not receive_some, because it first tries to read, in vain after all has been read
        data = None
        while data is None and not self._out.closed:
            await trio.lowlevel.wait_readable(self._stream.socket)
            with suppress(BlockingIOError):
                data = os.read(self._stream.socket.fileno(), _CHUNK)
        if not data:
            raise ConnectionClosedError("the peer closed the connection", transport="tcp")
        self._in += data

    def messages(self) -> list[bytes]:
        """Take the complete messages of Noise that have arrived, without their lengths."""
        found, received, start = [], self._in, 0
        while len(received) - start >= _LENGTH:
            stop = start + _LENGTH + int.from_bytes(received[start : start + _LENGTH], "big")
            if len(received) < stop:
                break
            found.append(bytes(received[start + _LENGTH : stop]))
            start = stop
        del received[:start]
        return found

    async def close(self) -> None:
        self._out.close()
        await trio.aclose_forcefully(self._stream)

    def get_remote_address(self) -> tuple[str, int] | None:
        return None  # used only for identify's "observed address"


class Session:
    """The encrypted connection as Yamux sees it, made of the library's session after its last negotiation.

    ``deliver`` is given the decrypted bytes whenever Yamux asks for a header, and takes the frames that it can handle
    from their start.
    """

    def __init__(self, secured: Any, wire: Wire) -> None:
        self._secured = secured
        self._wire = wire
        self._encrypt: Callable[[bytes], bytes] = secured.conn.noise_state.encrypt
        self._decrypt: Callable[[bytes], bytes] = secured.conn.noise_state.decrypt
        self._received = bytearray(secured._drain(None))
        self.is_initiator: bool = secured.is_initiator
        self.deliver: Callable[[bytearray], None] = lambda received: None

    def put(self, data: bytes) -> None:
        """Queue all of ``data``. Raises ConnectionClosedError."""
        for start in range(0, len(data), MAX_PLAINTEXT_LENGTH):
            message = self._encrypt(data[start : start + MAX_PLAINTEXT_LENGTH])
            self._wire.put(len(message).to_bytes(_LENGTH, "big") + message)

    async def write(self, data: bytes) -> None:
        self.put(data)

    async def read(self, n: int) -> bytes:
        """The next header, of ``n`` bytes, for which :attr:`deliver` has no use. Raises anything."""
        self.deliver(self._received)
        if len(self._received) >= n:
            # one read of the socket may bring thousands of frames, and Yamux handles some of them without waiting
            await trio.lowlevel.checkpoint()
        while len(self._received) < n:
            await self._fill()
            self.deliver(self._received)
        return self._take(n)

    async def read_body(self, n: int) -> bytes:
        """Exactly ``n`` bytes. Raises anything."""
        while len(self._received) < n:
            await self._fill()
        return self._take(n)

    def _take(self, n: int) -> bytes:
        data = bytes(self._received[:n])
        del self._received[:n]
        return data

    async def _fill(self) -> None:
        while not (messages := self._wire.messages()):
            await self._wire.fill()
        for message in messages:
            self._received += self._decrypt(message)

    async def close(self) -> None:
        await self._secured.close()
