"""The ring's ``Host`` on libp2p: TCP, Noise, Yamux.

It does without the library's Swarm and BasicHost (``libp2p/__init__`` says why): it listens, dials, keeps the
connections, and bounds all of them.

Each connection is one task of the host from its handshake to its end, so an error in it ends only this connection.
Dials are such tasks too: their callers wait for a ``Result`` and may stop waiting at any time.

Inbound connections are limited in number: in total, by address and by identity.  All sockets are counted in the ring's
share of the open files (``ring_files``), and with few files these limits are lower.  Of the connections that have not
completed their handshake, a new one evicts the oldest from its own address, so a flood from one address delays only the
peers that share the address.

A new limit on connections belongs here, on dials in ``dialler``, on streams in ``libp2p/peer_connection``.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from spegel_consul.error_words import in_words
from spegel_consul.http.server.accept import accept
from spegel_consul.multiaddrs import Address
from spegel_consul.peers import RingError, host_port, peer_id_to_text, unmapped_host
from spegel_consul.ring.dht.messages import Frames, frame
from spegel_consul.ring.net import node_key
from spegel_consul.ring.net.dialler import Dialler, NoAnswer
from spegel_consul.ring.net.host import (
    HANDSHAKE_TIMEOUT,
    DialledSelf,
    Handler,
    Identity,
    Replaced,
    Silent,
    Stream,
    Unreachable,
)
from spegel_consul.ring.net.libp2p.layers import Layers, read_description
from spegel_consul.ring.net.libp2p.noise_transport import Wire
from spegel_consul.ring.net.libp2p.peer_connection import Connection
from spegel_consul.ring.net.loop_time import LoopTime
from spegel_consul.ring.net.ring_files import RingFiles
from spegel_consul.ring.net.shared_result import Result
from spegel_consul.ring.net.tcp import detect_vanished_host, listen

log = structlog.get_logger(__name__)

MAX_CONNECTIONS = 4096
MAX_CONNECTIONS_PER_PEER = 4
MAX_INBOUND_PER_ADDRESS = 256  # many, because a whole site may share one NAT address
MAX_HALF_OPEN = 512
MAX_HALF_OPEN_PER_ADDRESS = 128

_IDENTIFY, _PING = "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"
_MAX_IDENTIFY = 64 << 10
_PING_IDLE = 600.0


class Libp2pHost:
    """A libp2p host over TCP.

    ``bind`` is the address to listen on: ``(host, port)`` with an IP address, port 0 for any, or a bound socket.
    ``advertise`` is the address at which others dial it, by default ``bind``; its port 0 means the port it listens on.
    ``secondary`` is the secondary address: an IP address of the other family, for the same port.
    ``files`` counts its sockets; hosts that replace each other share it.
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        *,
        bind: tuple[str, int] | socket.socket,
        advertise: tuple[str, int] | None = None,
        secondary: str | None = None,
        files: RingFiles | None = None,
    ) -> None:
        self._bind = bind
        host, port = advertise or (bind.getsockname()[:2] if isinstance(bind, socket.socket) else bind)
        self._address = Address(host, port)
        self._secondary = secondary
        self._id = node_key.peer_id(key)
        self._layers = Layers(key)
        self._handlers: dict[str, Handler] = {_IDENTIFY: self._answer_identify, _PING: self._answer_ping}
        self.on_disconnect: Callable[[bytes], None] = lambda peer: None
        self.refuses: Callable[[bytes], bool] = lambda peer: False
        self.on_duplicate: Callable[[str], None] = lambda address: None
        self._connections: dict[bytes, list[Connection]] = {}
        self._half_open: dict[trio.CancelScope, str] = {}  # the oldest first
        self._inbound: Counter[str] = Counter()  # connections by remote address
        self._accepting = trio.CancelScope()
        self._dialling: dict[bytes, Result[Connection]] = {}
        self._files = files or RingFiles()
        self._dialler = Dialler(self._files)
        self._loop_time = LoopTime(self._spawn)
        self._nursery: trio.Nursery | None = None

    @property
    def id(self) -> bytes:
        return self._id

    @property
    def address(self) -> Address:
        return self._address

    def connected(self) -> tuple[bytes, ...]:
        return tuple(self._connections)

    def is_connected(self, peer: bytes) -> bool:
        return peer in self._connections

    def hosts_of(self, peer: bytes) -> tuple[str, ...]:
        return tuple(each.dialled[0] if each.dialled else each.remote for each in self._connections.get(peer, ()))

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    async def dial(self, host: str, port: int) -> bytes:
        for connections in self._connections.values():
            for connection in connections:
                if connection.dialled == (host, port) and not connection.closed:
                    return connection.peer
        return (await self._dialled(host, port, named=True)).peer

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Stream:
        while True:
            connection = self._connection(peer)
            had = connection is not None
            if connection is None:
                connection = await self._dial_peer(peer, addresses)
            result: Result[Stream] = Result(unwanted=lambda stream: stream.reset())
            connection.spawn(connection.open, protocol, result)
            if not connection.closed:
                try:
                    return await result.wait()
                except Unreachable:
                    # it broke a moment ago; try another connection, or the address
                    if not had or not connection.closed:
                        raise
            elif not had:
                raise Unreachable("the connection was lost")

    async def identify(self, peer: bytes) -> Identity:
        stream = await self.open(peer, (), _IDENTIFY)
        frames = Frames(_MAX_IDENTIFY)
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT):
                while data := await stream.receive():
                    for body in frames.feed(data):
                        return read_description(body)
        except trio.TooSlowError:
            raise RingError("the peer does not identify itself in time") from None
        finally:
            stream.reset()
        raise RingError("the peer does not identify itself")

    def disconnect(self, peer: bytes) -> None:
        for connection in self._connections.get(peer, ()):
            connection.drop()

    def retire(self) -> None:
        self._accepting.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listener = listen(self._bind)
        if self._address.port == 0:
            self._address = Address(self._address.host, listener.getsockname()[1])
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                with self._accepting:
                    await accept(listener, partial(self._accepted, nursery))
                await trio.sleep_forever()
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    def _accepted(self, nursery: trio.Nursery, sock: socket.socket) -> None:
        if self._files.enter(inbound=True):
            nursery.start_soon(self._accept, sock)
        else:
            sock.close()

    async def _accept(self, sock: socket.socket) -> None:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        try:
            remote = unmapped_host(stream.socket.getpeername()[0])
        except OSError:
            remote = ""
        self._evict_half_open(remote)
        handshake = trio.CancelScope()
        self._half_open[handshake] = remote
        try:
            await self._connect(stream, Result(), handshake, remote=remote)
        finally:
            self._half_open.pop(handshake, None)

    def _evict_half_open(self, remote: str) -> None:
        mine = [scope for scope, address in self._half_open.items() if address == remote]
        if len(mine) >= self._files.limit(MAX_HALF_OPEN_PER_ADDRESS, 16):
            oldest = mine[0]
        elif len(self._half_open) >= self._files.limit(MAX_HALF_OPEN, 8):
            oldest = next(iter(self._half_open))
        else:
            return
        del self._half_open[oldest]  # here, because the next connection may be accepted before the cancelled task runs
        oldest.cancel()

    async def _dialled(self, host: str, port: int, *, named: bool = False) -> Connection:
        if self._nursery is None:
            raise Unreachable("the ring is not running")
        result: Result[Connection] = Result()
        self._nursery.start_soon(self._dial, self._nursery, host, port, named, result)
        return await result.wait()

    async def _dial_peer(self, peer: bytes, addresses: Sequence[Address]) -> Connection:
        """A connection to ``peer``; concurrent callers share one dial."""
        result = self._dialling.get(peer)
        if result is None:
            if self._nursery is None:
                raise Unreachable("the ring is not running")
            result = self._dialling[peer] = Result()
            self._nursery.start_soon(self._dial_each, peer, tuple(addresses)[:4], result)
        return await result.wait()

    async def _dial_each(self, peer: bytes, addresses: tuple[Address, ...], result: Result[Connection]) -> None:
        reasons: list[str] = []
        others, kind = 0, Unreachable
        try:
            for address in addresses:
                try:
                    connection = await self._dialled(address.host, address.port)
                except Unreachable as exc:
                    reasons.append(str(exc))
                    kind = Silent if isinstance(exc, Silent) else kind
                    continue
                if connection.peer == peer:
                    result.set(connection)
                    return
                others += 1
                reasons.append(f"{address} is {peer_id_to_text(connection.peer)} now")
        finally:
            self._dialling.pop(peer, None)
            kind = Replaced if others and others == len(addresses) else kind
            result.fail(kind("; ".join(reasons) or "no address of the peer is known"))

    async def _dial(self, nursery: trio.Nursery, host: str, port: int, named: bool, result: Result[Connection]) -> None:
        known = named or self._dialler.has_heard_from(host)
        try:
            stream = await self._dialler.connect(host, port, named=named)
        except Exception as exc:  # getaddrinfo raises more than OSError for an impossible name
            kind = Silent if isinstance(exc, NoAnswer) else Unreachable
            result.fail(kind(f"can't connect to {host!a}, port {port}: {in_words(exc)}"))
            return
        begun = False

        async def handshake() -> None:
            nonlocal begun
            begun = True
            nursery.start_soon(partial(self._connect, stream, result, trio.CancelScope(), dialled=(host, port)))
            with suppress(RingError):
                await result.wait()

        try:
            await self._dialler.handshake(handshake, known=known)
        finally:
            if not begun:
                try:
                    await trio.aclose_forcefully(stream)
                finally:
                    self._files.leave(inbound=False)

    async def _connect(
        self,
        stream: trio.SocketStream,
        result: Result[Connection],
        handshake: trio.CancelScope,
        *,
        dialled: tuple[str, int] | None = None,
        remote: str = "",
    ) -> None:
        """Make a connection of a counted TCP stream and run it until it ends. Raises nothing."""
        wire = Wire(stream)
        outbound = dialled is not None
        connection = None
        try:
            detect_vanished_host(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.pump)
                try:
                    muxed = await self._upgrade(wire, outbound, handshake, host_port(*dialled) if dialled else remote)
                    self._half_open.pop(handshake, None)
                except Exception as exc:  # handled here, before the nursery wraps it in a group
                    if dialled is not None and isinstance(exc, Silent):
                        self._dialler.handshake_timed_out(*dialled)
                    result.fail(exc if isinstance(exc, Unreachable) else Unreachable(f"no handshake: {exc!r}"))
                    raise
                # of two connections between the same peers, the side that dialled closes an idle one
                may_trim = self._has_several if outbound else None
                connection = Connection(muxed, nursery, self._handlers, may_trim, dialled, remote, self._loop_time)
                await connection.start()
                self._register(connection)
                result.set(connection)
                await connection.run()
                connection.drop()
        # untrusted bytes can raise anything in the layers below; at the host's end the error may share a group with the
        # cancellation, and only the cancellation goes on
        except* Exception as exc:
            log.debug("ring_connection_failed", outbound=outbound, error=repr(exc))
            result.fail(Unreachable(f"no connection: {exc!r}"))
        finally:
            result.fail(Unreachable("the connection was abandoned"))
            if connection is not None:
                self._unregister(connection)
            try:
                await wire.close()  # at the host's end it raises Cancelled
            finally:
                self._files.leave(inbound=not outbound)

    async def _upgrade(self, wire: Wire, outbound: bool, handshake: trio.CancelScope, at: str) -> Any:
        """Negotiate Noise and Yamux on a TCP stream, and authenticate the peer. Raises anything."""
        with handshake, suppress(trio.TooSlowError), self._loop_time.fail_after(HANDSHAKE_TIMEOUT):
            secured = await self._layers.secure(wire, outbound=outbound)
            if self._layers.peer_of(secured) == self._id:
                if not self._layers.is_this_process(secured):
                    self.on_duplicate(at)
                raise DialledSelf("this node itself has the address")
            return await self._layers.multiplex(secured, wire)
        raise Silent("the handshake timed out")

    def _spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task)

    def _has_several(self, peer: bytes) -> bool:
        return len(self._connections.get(peer, ())) > 1

    def _register(self, connection: Connection) -> None:
        mine = self._connections.get(connection.peer, [])
        if self.refuses(connection.peer):
            raise Unreachable("the peer is banned")
        total = sum(map(len, self._connections.values()))
        if len(mine) >= MAX_CONNECTIONS_PER_PEER or total >= MAX_CONNECTIONS:
            raise Unreachable("there are too many connections")
        if connection.remote:
            if self._inbound[connection.remote] >= self._files.limit(MAX_INBOUND_PER_ADDRESS, 4):
                raise Unreachable("there are too many connections from this address")
            self._inbound[connection.remote] += 1
            self._dialler.heard_from(connection.remote)
        self._connections.setdefault(connection.peer, []).append(connection)

    def _unregister(self, connection: Connection) -> None:
        connection.end()
        mine = self._connections.get(connection.peer, [])
        if connection in mine:
            mine.remove(connection)
            if connection.remote:
                self._inbound[connection.remote] -= 1
                self._inbound += Counter()  # drops the zero counts
            if not mine:
                del self._connections[connection.peer]
                self.on_disconnect(connection.peer)

    def _connection(self, peer: bytes) -> Connection | None:
        return next((each for each in self._connections.get(peer, ()) if not each.closed), None)

    def _advertised(self) -> tuple[Address, ...]:
        if self._secondary is None:
            return (self._address,)
        return self._address, replace(self._address, host=self._secondary)

    async def _answer_identify(self, stream: Stream) -> None:
        stream.send(frame(self._layers.describe(self._advertised(), self._handlers)))
        stream.close()

    async def _answer_ping(self, stream: Stream) -> None:
        with trio.fail_after(_PING_IDLE):
            while data := await stream.receive():
                stream.send(data)
        stream.close()
