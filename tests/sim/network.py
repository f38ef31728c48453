# A network without sockets: hosts in one process, with latency on Trio's clock, so that a test with a mock
# clock lets a ring live for hours.  A host can hang (its connections stand, it says nothing) or crash (its
# connections break and nobody answers at its address).

"""``SimHost``: the ring's ``Host`` in a simulated network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import trio

from spegel_consul.ring import peerid
from spegel_consul.ring.address import Address
from spegel_consul.ring.host import (
    DialledSelf,
    Handler,
    Identity,
    ProtocolRefused,
    Stream,
    StreamClosed,
    Unreachable,
)


class SimNetwork:
    """All hosts and what they can reach; ``latency`` is one way, in seconds."""

    def __init__(self, latency: float = 0.001) -> None:
        self.latency = latency
        self.hosts: dict[tuple[str, int], SimHost] = {}
        self.messages = 0
        self._numbers = itertools.count(1)

    def host(self) -> SimHost:
        number = next(self._numbers)
        return SimHost(self, Address(f"10.0.{number >> 8}.{number & 255}", 5001), number)


class SimHost:
    """One host; set :attr:`hung` to make it silent."""

    def __init__(self, network: SimNetwork, address: Address, number: int) -> None:
        self._network = network
        self._address = address
        self._id = peerid.of_ed25519(number.to_bytes(32, "big"))
        self._handlers: dict[str, Handler] = {}
        self._peers: dict[bytes, SimHost] = {}
        self._streams: list[SimStream] = []
        self._nursery: trio.Nursery | None = None
        self.on_disconnect: Callable[[bytes], None] = lambda peer: None
        self.refuses: Callable[[bytes], bool] = lambda peer: False
        self.hung = False

    @property
    def id(self) -> bytes:
        return self._id

    @property
    def address(self) -> Address:
        return self._address

    def connected(self) -> tuple[bytes, ...]:
        return tuple(self._peers)

    def is_connected(self, peer: bytes) -> bool:
        return peer in self._peers

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    def refuse(self, protocol: str) -> None:
        """Behave as a host that does not know ``protocol``."""
        del self._handlers[protocol]

    async def dial(self, host: str, port: int) -> bytes:
        if self._nursery is None:
            raise Unreachable("not running")
        await trio.sleep(3 * self._network.latency)
        other = self._network.hosts.get((host, port))
        if other is self:
            raise DialledSelf("behind this address is this node")
        if other is not None and other.hung:
            await trio.sleep(3)
            raise Unreachable("no handshake")
        if other is None or other._nursery is None or self._nursery is None:
            raise Unreachable("connection refused")
        if other.refuses(self._id) or self.refuses(other.id):
            raise Unreachable("shut out")
        self._peers[other.id] = other
        other._peers[self._id] = self
        return other.id

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Stream:
        if peer not in self._peers:
            for address in addresses:
                if await self.dial(address.host, address.port) == peer:
                    break
            else:
                raise Unreachable("no address leads to the peer")
        await trio.sleep(2 * self._network.latency)
        other = self._peers.get(peer)
        if other is None or other._nursery is None:
            raise Unreachable("the connection was lost")
        if other.hung:
            await trio.sleep(5)
            raise Unreachable("no stream")
        if protocol not in other._handlers:
            raise ProtocolRefused(protocol)
        ours, theirs = SimStream(self._network, peer, self), SimStream(self._network, self._id, other)
        ours.other, theirs.other = theirs, ours
        other._nursery.start_soon(other._handle, protocol, theirs)
        return ours

    async def identify(self, peer: bytes) -> Identity:
        await trio.sleep(2 * self._network.latency)
        other = self._peers.get(peer)
        if other is None or other.hung:
            raise Unreachable("the connection was lost")
        return Identity(frozenset(other._handlers), (other.address.encode(),))

    def disconnect(self, peer: bytes) -> None:
        other = self._peers.pop(peer, None)
        for stream in [stream for stream in self._streams if stream.peer == peer]:
            stream.reset()
        if other is not None:
            self.on_disconnect(peer)
            other.disconnect(self._id)

    def retire(self) -> None:
        key = (self._address.host, self._address.port)
        if self._network.hosts.get(key) is self:
            del self._network.hosts[key]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        key = (self._address.host, self._address.port)
        self._network.hosts[key] = self
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self.retire()
                for peer in list(self._peers):
                    self.disconnect(peer)

    async def _handle(self, protocol: str, stream: SimStream) -> None:
        try:
            await self._handlers[protocol](stream)
        except Exception:
            stream.reset()


class SimStream:
    """One end of a stream."""

    other: SimStream

    def __init__(self, network: SimNetwork, peer: bytes, host: SimHost) -> None:
        self._network = network
        self._peer = peer
        self._host = host
        self._put, self._take = trio.open_memory_channel[tuple[float, bytes | None]](math.inf)
        self._broken = False
        host._streams.append(self)

    @property
    def peer(self) -> bytes:
        return self._peer

    def send(self, data: bytes) -> None:
        if self._broken:
            raise StreamClosed("the stream is closed")
        self._network.messages += 1
        if not self._host.hung:
            self.other._put.send_nowait((trio.current_time() + self._network.latency, data))

    async def receive(self) -> bytes:
        if self._broken:
            raise StreamClosed("the stream is closed")
        arrival, data = await self._take.receive()
        await trio.sleep_until(arrival)
        if self._host.hung:
            await trio.sleep_forever()
        if data is None:
            if self._broken:
                raise StreamClosed("the stream was reset")
            return b""
        return data

    def close(self) -> None:
        if not self._broken:
            self.other._put.send_nowait((trio.current_time() + self._network.latency, None))

    def reset(self) -> None:
        for end in (self, self.other):
            if not end._broken:
                end._broken = True
                end._host._streams.remove(end)
                end._put.send_nowait((0.0, None))
