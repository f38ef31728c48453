"""HTTP/1.1 client for the registries of peers.

Three deadlines keep a pull from hanging on a peer: to connect, to the first byte of the answer, and between any two
bytes after it. The mirror's client waits for more than a minute, so these deadlines are its only protection. A
connection returns to the idle ones only if its answer was read to the end. It is reused only if the peer has sent
nothing since.

A peer may need longer than a silence is believed. Then it sends interim answers (1xx), and each of them begins the
silence anew.

A new rule about connections to peers or their deadlines belongs here. Framing belongs to
:mod:`spegel_consul.http.response_head`, and the acceptance of an answer to the caller.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import trio

from spegel_consul.http.response_head import MAX_HEAD, Reply, ReplyError, parse_reply, without_interim
from spegel_consul.http.tls import Tls
from spegel_consul.peers import PeerError, host_port
from spegel_consul.zerocopy.send import send_bytes
from spegel_consul.zerocopy.source import Throughput

_RECEIVE = 1 << 18
_MOST_INTERIM = 64  # of one answer; a source sends one a second while it waits
_RECEIVE_HEAD = 1 << 12  # not more, because bytes of the body that come with the head can't be spliced


class Unreachable(PeerError):
    """No connection to the peer's address could be made."""


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Deadlines in seconds: to connect, to the head of the answer, and between two reads of its body.

    ``rate``: bytes per second below which the rest of a body is taken from another peer, if there is one; 0 for never.
    ``idle``: seconds for which an idle connection is kept; ``idle_connections``: the largest number of them per peer.
    """

    connect: float = 1.0
    first_byte: float = 2.0
    stall: float = 5.0
    rate: int = 2 << 20
    idle: float = 30.0
    idle_connections: int = 16


class PeerResponse:
    """The head of an answer, and its body as a stream. Discard it, or read it to the end."""

    def __init__(self, client: PeerClient, connection: _Connection, reply: Reply) -> None:
        self._client = client
        self._connection: _Connection | None = connection
        self._reply = reply
        self._received = reply.body
        self._left = reply.length - len(reply.body)
        self.status = reply.status
        self.connected = 0.0 if connection.reused else connection.connected
        """Time at which the connection was made (time.perf_counter()); 0 if it is a reused one."""

    def header(self, name: bytes) -> str | None:
        """Return the value of a header field by its lower-case name."""
        value = self._reply.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def chunks(self, throughput: Throughput | None = None) -> AsyncGenerator[bytes, None]:
        """Yield the body, or the rest of it if some was read before.

        Raises PeerError if the body stalls or ends early, and exceptions of ``throughput`` between two pieces or while
        it waits; a piece that came in the same moment is not counted, and is dropped.
        """
        if received := self.buffered():
            yield received
        while self._left:
            assert self._connection is not None, "a body is read once"
            began = trio.current_time()
            stall = self._client.limits.stall if throughput is None else throughput.stall
            with trio.move_on_after(stall) if throughput is None else throughput.waiting(began + stall) as waiting:
                data = await self._connection.receive(min(self._left, _RECEIVE))
            if waiting.cancelled_caught:
                raise PeerError(f"{self._connection} sent nothing for {stall:g} s", hung=True)
            waited = trio.current_time() - began
            self._left -= len(data)
            yield data
            if throughput is not None and self._left:
                throughput.waited(waited, self._left)
        self.taken()

    def buffered(self) -> bytes:
        """Take the bytes of the body that were received with the head; the rest is read from :attr:`socket`.

        Report bytes that were read from the socket with :meth:`spliced`, and the end of the body with :meth:`taken`.
        """
        received, self._received = self._received, b""
        return received

    @property
    def socket(self) -> trio.socket.SocketType:
        """The peer's socket, which continues after the buffered bytes."""
        assert self._connection is not None
        return self._connection.sock

    def spliced(self, count: int) -> None:
        """Report that ``count`` bytes of the body were taken from :attr:`socket`."""
        self._left -= count

    def taken(self) -> None:
        """Report that the body was read exactly to its end, so the connection can be reused."""
        connection, self._connection = self._connection, None
        assert connection is not None
        if self._reply.reusable:
            self._client._keep(connection)
        else:
            connection.close()

    def discard(self) -> None:
        """Give up the rest of the body, if any."""
        if self._connection is None:
            return
        if len(self._reply.body) == self._reply.length:
            self.taken()
        else:
            self._connection.close()
            self._connection = None


class _Connection:
    def __init__(
        self, address: tuple[str, int], sock: trio.socket.SocketType, secure: trio.SSLStream[trio.SocketStream] | None
    ) -> None:
        self.address = address
        self.sock = sock
        self._secure = secure
        self.idle_since = 0.0
        self.reused = False
        self.connected = time.perf_counter()

    def __str__(self) -> str:
        return host_port(*self.address)

    def is_quiet(self) -> bool:
        """Whether the peer has neither closed the connection nor sent bytes without a request."""
        if self._secure is not None:
            incoming = getattr(self._secure, "_incoming", None)  # private, because Trio has no public attribute for it
            if incoming is None or incoming.pending or self._secure.pending():
                return False
        try:
            os.read(self.sock.fileno(), 1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def send(self, data: bytes) -> None:
        """Send ``data``. Raises PeerError."""
        try:
            if self._secure is None:
                await send_bytes(self.sock, data)
            else:
                await self._secure.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise PeerError(f"{self} reset the connection") from None

    async def receive(self, most: int) -> bytes:
        """Receive at least one byte. Raises PeerError."""
        try:
            if self._secure is not None:
                data = bytes(await self._secure.receive_some(most))
            else:
                data = await self._read(most)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            raise PeerError(f"{self} reset the connection") from None
        if not data:
            raise PeerError(f"{self} closed the connection")
        return data

    async def _read(self, most: int) -> bytes:
        fd = self.sock.fileno()
        while True:
            try:
                return os.read(fd, most)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self.sock)

    def close(self) -> None:
        self.sock.close()


class PeerClient:
    """Sends requests to peers, and keeps idle connections for further requests."""

    def __init__(self, limits: PeerLimits | None = None, tls: Tls | None = None) -> None:
        self.limits = limits or PeerLimits()
        self._tls = tls
        self._idle: dict[tuple[str, int], list[_Connection]] = {}
        self._next_sweep = 0.0

    @property
    def encrypts(self) -> bool:
        """Whether peers are asked over TLS."""
        return self._tls is not None

    async def request(
        self,
        address: tuple[str, int],
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        *,
        first_byte: float | None = None,
        silence: float = math.inf,
    ) -> PeerResponse:
        """Send a request without a body and return the head of the answer.

        ``first_byte``: seconds to the head of this answer, if not those of the limits; ``silence``: seconds to the head
        or to the next interim answer.
        Raises PeerError; Unreachable if the request was not sent because no connection could be made.
        """
        within = self.limits.first_byte if first_byte is None else first_byte
        connection = self._reuse(address) or await self._connect(address)
        try:
            try:
                return await self._exchange(connection, method, target, headers, within, silence)
            except PeerError as exc:
                if not connection.reused or exc.hung:
                    raise
                # retry on a new connection, because the peer may have closed the idle one at the same moment
                connection.close()
                connection = await self._connect(address)
                return await self._exchange(connection, method, target, headers, within, silence)
        except BaseException:
            connection.close()
            raise

    def has_idle(self, address: tuple[str, int]) -> bool:
        """Whether there is an idle connection to ``address``."""
        return bool(self._idle.get(address))

    async def request_at_once(
        self, address: tuple[str, int], method: str, target: str, headers: Sequence[tuple[str, str]]
    ) -> PeerResponse | None:
        """Send a request over an idle connection; return None if there is none or it fails."""
        connection = self._reuse(address)
        if connection is None:
            return None
        try:
            return await self._exchange(connection, method, target, headers, self.limits.first_byte)
        except PeerError:
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise

    async def _exchange(
        self,
        connection: _Connection,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        within: float,
        silence: float = math.inf,
    ) -> PeerResponse:
        lines = [f"{method} {target} HTTP/1.1", f"host: {connection}", *(f"{name}: {value}" for name, value in headers)]
        question = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        last, interim = trio.current_time() + within, 0
        with trio.move_on_after(min(within, silence)) as waiting:
            await connection.send(question)
            data = b""
            while True:
                data += await connection.receive(_RECEIVE_HEAD)
                if silence < math.inf:
                    data, count = without_interim(data)
                    interim += count
                    if count and interim <= _MOST_INTERIM:
                        waiting.deadline = min(last, trio.current_time() + silence)
                reply = self._parse(connection, data, method) if data else None
                if reply is not None:
                    return PeerResponse(self, connection, reply)
                if len(data) > MAX_HEAD:
                    raise PeerError(f"{connection} sent a head of more than {MAX_HEAD} bytes", broken=True)
                await trio.lowlevel.checkpoint()  # for other tasks, because single bytes may always be ready
        limit = within if trio.current_time() >= last else silence
        raise PeerError(f"{connection} did not answer within {limit:g} s", hung=True)

    @staticmethod
    def _parse(connection: _Connection, data: bytes, method: str) -> Reply | None:
        try:
            return parse_reply(data, method)
        except ReplyError as exc:
            raise PeerError(f"{connection} did not answer in HTTP: {exc}", broken=True) from None

    def _reuse(self, address: tuple[str, int]) -> _Connection | None:
        idle = self._idle.get(address, [])
        while idle:
            connection = idle.pop()
            if trio.current_time() - connection.idle_since < self.limits.idle and connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()
        return None

    async def _connect(self, address: tuple[str, int]) -> _Connection:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        secure = None
        try:
            with trio.fail_after(self.limits.connect):
                await sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    plain, context = trio.SocketStream(sock), self._tls.client()
                    secure = trio.SSLStream(plain, context, server_hostname=host, https_compatible=True)
                    await secure.do_handshake()
        except trio.TooSlowError:
            sock.close()
            message = f"{host} port {port} did not accept within {self.limits.connect:g} s"
            raise Unreachable(message, hung=True) from None
        except trio.BrokenResourceError as exc:
            sock.close()
            raise PeerError(f"{host} port {port} and this node do not agree on TLS: {exc.__cause__ or exc}") from None
        except OSError as exc:
            sock.close()
            raise Unreachable(f"{host} port {port} can't be reached: {exc}") from None
        except BaseException:
            sock.close()
            raise
        return _Connection(address, sock, secure)

    def _keep(self, connection: _Connection) -> None:
        now = trio.current_time()
        if now >= self._next_sweep:
            self._next_sweep = now + self.limits.idle
            self._sweep(now)
        kept = self._idle.setdefault(connection.address, [])
        if len(kept) < self.limits.idle_connections:
            connection.idle_since = now
            kept.append(connection)
        else:
            connection.close()

    def _sweep(self, now: float) -> None:
        """Close connections that have been idle for too long, at all peers."""
        for address, connections in list(self._idle.items()):
            for connection in connections:
                if now - connection.idle_since >= self.limits.idle:
                    connection.close()
            fresh = [connection for connection in connections if now - connection.idle_since < self.limits.idle]
            if fresh:
                self._idle[address] = fresh
            else:
                del self._idle[address]

    def close(self) -> None:
        """Close all idle connections."""
        for kept in self._idle.values():
            for connection in kept:
                connection.close()
        self._idle.clear()
