"""HTTP/1.1 client for the registries of peers.

Three deadlines keep a pull from hanging on a peer: to connect, to the first byte of the answer, and between any two
bytes after it. The mirror's client waits for more than a minute, so these deadlines are its only protection. A
connection returns to the idle ones only if its answer was read to the end. It is reused only if the peer has sent
nothing since.

A peer may need longer than a silence is believed. Then it sends interim answers (1xx), and each of them begins the
silence anew.

A new rule about requests to peers, or their deadlines, belongs here. The connection and its encryption belong to
:mod:`spegel_consul.http.registry_connection`, framing to :mod:`spegel_consul.http.response_head`, and the acceptance
of an answer to the caller.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence

import trio

from spegel_consul.http.peer_tls import PeerTls
from spegel_consul.http.registry_connection import RegistryConnection, RegistryDialler
from spegel_consul.http.response_head import MAX_HEAD, Reply, ReplyError, parse_reply, without_interim
from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import PeerError
from spegel_consul.zerocopy.encrypted.secure_socket import SecureSocket
from spegel_consul.zerocopy.source import Throughput

_RECEIVE = 1 << 18
_MOST_INTERIM = 64  # of one answer; a source sends one a second while it waits
_IDLE = 30.0  # seconds for which an idle connection is kept
_RECEIVE_HEAD = 1 << 12  # not more, because bytes of the body that come with the head can't be spliced


@dataclass(frozen=True, slots=True)
class PeerLimits:
    """Deadlines in seconds: to connect, to the head of the answer, and between two reads of its body.

    ``rate``: bytes per second below which the rest of a body is taken from another peer, if there is one; 0 for never.
    ``idle_connections``: the largest number of idle connections that are kept per peer.
    """

    connect: float = 1.0
    first_byte: float = 2.0
    stall: float = 5.0
    rate: int = 2 << 20
    idle_connections: int = 16


class PeerResponse:
    """The head of an answer, and its body as a stream. Discard it, or read it to the end."""

    def __init__(self, client: PeerClient, connection: RegistryConnection, reply: Reply) -> None:
        self._client = client
        self._connection: RegistryConnection | None = connection
        self._reply = reply
        self._received = reply.body
        self._left = reply.length - len(reply.body)
        self.status = reply.status
        self.encrypted = connection.encrypted
        """Whether :attr:`source` is a SecureSocket, whose bytes the kernel can't move."""
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
        pace = throughput.pace if throughput is not None else None
        while self._left:
            assert self._connection is not None, "a body is read once"
            most = min(self._left, _RECEIVE)
            if pace is not None:
                most = await pace.take(most)
            began = trio.current_time()
            stall = self._client.limits.stall if throughput is None else throughput.stall
            with trio.move_on_after(stall) if throughput is None else throughput.waiting(began + stall) as waiting:
                data = await self._connection.receive(most)
            if waiting.cancelled_caught:
                raise PeerError(f"{self._connection} sent nothing for {stall:g} s", hung=True)
            waited = trio.current_time() - began
            self._left -= len(data)
            if pace is not None:
                pace.give_back(most - len(data))
            yield data
            if throughput is not None and self._left:
                throughput.waited(waited, self._left)
        self.taken()

    def buffered(self) -> bytes:
        """Take the bytes of the body that were received with the head; the rest is read from :attr:`source`.

        Report bytes that were read from the source with :meth:`spliced`, and the end of the body with :meth:`taken`.
        """
        received, self._received = self._received, b""
        return received

    @property
    def source(self) -> trio.socket.SocketType | SecureSocket | None:
        """The peer's socket, which continues after the buffered bytes; None for an answer without a connection."""
        return None if self._connection is None else self._connection.source

    def spliced(self, count: int) -> None:
        """Report that ``count`` bytes of the body were taken from :attr:`source`."""
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


class PeerClient:
    """Sends requests to peers, and keeps idle connections for further requests.

    A client that lives longer than its requests needs :meth:`run`; others need only :meth:`close`.
    """

    def __init__(self, limits: PeerLimits | None = None, tls: PeerTls | None = None) -> None:
        self.limits = limits or PeerLimits()
        self._dialler = RegistryDialler(tls)
        self._idle: dict[tuple[str, int], list[RegistryConnection]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Close connections that have been idle for too long, until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(_IDLE)
            self._sweep()

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
        connection = self._reuse(address) or await self._dialler.connect(address, self.limits.connect)
        try:
            try:
                response = await self._exchange(connection, method, target, headers, within, silence)
                if not self._dialler.refuses_plain(connection, response.status):
                    return response
                response.discard()
            except PeerError as exc:
                if exc.hung or not (connection.reused or self._dialler.falls_back(connection, exc)):
                    raise
                # retry on a new connection, because the peer may have closed the idle one at the same moment
            connection.close()
            connection = await self._dialler.connect(address, self.limits.connect)
            return await self._exchange(connection, method, target, headers, within, silence)
        except BaseException:
            connection.close()
            raise

    def has_idle(self, address: tuple[str, int]) -> bool:
        """Whether there is an idle connection to ``address``."""
        kept = self._idle.get(address, [])
        return bool(kept) and _is_fresh(kept[-1])

    async def request_at_once(
        self, address: tuple[str, int], method: str, target: str, headers: Sequence[tuple[str, str]]
    ) -> PeerResponse | None:
        """Send a request over an idle connection; return None if there is none or it fails.

        The caller limits the time.
        """
        connection = self._reuse(address)
        if connection is None:
            return None
        try:
            await connection.send(_question(connection, method, target, headers))
            data = b""
            while True:
                data += await connection.receive(_RECEIVE_HEAD)
                response = await self._response(connection, data, method)
                if response is not None:
                    return response
        except PeerError:
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise

    async def _exchange(
        self,
        connection: RegistryConnection,
        method: str,
        target: str,
        headers: Sequence[tuple[str, str]],
        within: float,
        silence: float = math.inf,
    ) -> PeerResponse:
        last, interim = trio.current_time() + within, 0
        with trio.move_on_after(min(within, silence)) as waiting:
            await connection.send(_question(connection, method, target, headers))
            data = b""
            while True:
                data += await connection.receive(_RECEIVE_HEAD)
                if silence < math.inf:
                    data, count = without_interim(data)
                    interim += count
                    if count and interim <= _MOST_INTERIM:
                        waiting.deadline = min(last, trio.current_time() + silence)
                response = await self._response(connection, data, method)
                if response is not None:
                    return response
        limit = within if trio.current_time() >= last else silence
        raise PeerError(f"{connection} did not answer within {limit:g} s", hung=True)

    async def _response(self, connection: RegistryConnection, data: bytes, method: str) -> PeerResponse | None:
        """Return the answer that begins with ``data``, or None if its head is not complete. Raises PeerError."""
        try:
            reply = parse_reply(data, method) if data else None
        except ReplyError as exc:
            raise PeerError(f"{connection} did not answer in HTTP: {exc}", broken=True) from None
        if reply is not None:
            return PeerResponse(self, connection, reply)
        if len(data) > MAX_HEAD:
            raise PeerError(f"{connection} sent a head of more than {MAX_HEAD} bytes", broken=True)
        await trio.lowlevel.checkpoint()  # for other tasks, because single bytes may always be ready
        return None

    def _reuse(self, address: tuple[str, int]) -> RegistryConnection | None:
        idle = self._idle.get(address, [])
        while idle:
            connection = idle.pop()
            if _is_fresh(connection) and connection.is_quiet():
                connection.reused = True
                return connection
            connection.close()
        return None

    def _keep(self, connection: RegistryConnection) -> None:
        kept = self._idle.setdefault(connection.address, [])
        if len(kept) < self.limits.idle_connections:
            connection.idle_since = trio.current_time()
            kept.append(connection)
        else:
            connection.close()

    def _sweep(self) -> None:
        for address, connections in list(self._idle.items()):
            fresh = []
            for connection in connections:
                if _is_fresh(connection):
                    fresh.append(connection)
                else:
                    connection.close()
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


def _is_fresh(connection: RegistryConnection) -> bool:
    return trio.current_time() - connection.idle_since < _IDLE


def _question(connection: RegistryConnection, method: str, target: str, headers: Sequence[tuple[str, str]]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"host: {connection}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
