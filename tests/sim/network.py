# A network without sockets: hosts in one process, on Trio's clock, so that a test with a mock clock lets a ring live
# for hours.  A host can hang (its connections stand, it says nothing), crash (its connections break and nobody answers
# at its address), or be cut off: what is sent waits until the cut is mended, as TCP would send it again, and after
# BREAKS_AFTER the connection is given up on both sides, as keepalive would.

"""``SimHost``: the ring's ``Host`` in a simulated network."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import trio

from spegel_consul.multiaddrs import Address
from spegel_consul.peers import peer_id_of_ed25519
from spegel_consul.ring.net.host import (
    DialledSelf,
    Handler,
    Identity,
    ProtocolRefused,
    Replaced,
    Silent,
    Stream,
    Unreachable,
)
from tests.sim.loop import Loop
from tests.sim.stream import Piece, SimStream

BREAKS_AFTER = 20.0
RESENT_AFTER = 0.2
MAX_INBOUND_STREAMS = 64


class SimNetwork:
    """All hosts and what they can reach.

    ``latency`` is one way, in seconds, ``loss`` the share of what is lost. The time is that of ``loop``, if there is
    one, else of Trio's clock.
    """

    def __init__(self, latency: float = 0.001, rng: random.Random | None = None, loop: Loop | None = None) -> None:
        self.latency = latency
        self._loop = loop
        self.loss = 0.0
        self.hosts: dict[tuple[str, int], SimHost] = {}
        self.messages = 0
        self._rng = rng or random.Random(0)
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._alarm: trio.Event | None = None
        self._cuts: list[Callable[[str, str], bool]] = []
        self._stalled: dict[tuple[str, str], list[tuple[SimStream, Piece]]] = {}

    def host(self, address: str | None = None, number: int | None = None) -> SimHost:
        """A host; ``number`` is its identity."""
        number = number or next(self._numbers)
        return SimHost(self, Address(address or f"10.0.{number >> 8}.{number & 255}", 5001), number)

    # -- time

    def at(self, moment: float, do: Callable[[], None]) -> None:
        """Call ``do`` at ``moment`` (Trio clock), in the order in which it was asked for."""
        if self._loop is not None:
            self._loop.at(moment, do)
            return
        first = not self._queue or moment < self._queue[0][0]
        heapq.heappush(self._queue, (moment, next(self._order), do))
        if self._alarm is None:
            self._alarm = trio.Event()
            trio.lowlevel.spawn_system_task(self._run)
        elif first:
            self._alarm.set()

    async def _run(self) -> None:
        while self._queue:
            now = trio.current_time()
            while self._queue and self._queue[0][0] <= now:
                heapq.heappop(self._queue)[2]()
            if self._queue:
                self._alarm = trio.Event()
                with trio.move_on_at(self._queue[0][0]):
                    await self._alarm.wait()
        self._alarm = None

    def delay(self) -> float:
        """How long a message takes, in whole milliseconds: moments that many share are cheap."""
        lost = 0.0
        while self.loss and self._rng.random() < self.loss and lost < 5:
            lost = 2 * lost or RESENT_AFTER
        spread = self.latency * self._rng.choice((1.0, 1.0, 1.0, 1.5, 3.0)) if self.latency > 0.001 else self.latency
        return lost + spread

    # -- cuts

    def cut(self, parts: Callable[[str, str], bool]) -> Callable[[], None]:
        """Nothing passes from one address to another if ``parts(one, other)``; returns what mends it."""
        self._cuts.append(parts)
        for host in list(self.hosts.values()):
            for peer, other in list(host._peers.items()):
                if not self.talk(host.address.host, other.address.host):
                    self.at(trio.current_time() + BREAKS_AFTER, lambda h=host, p=peer, o=other: self._give_up(h, p, o))

        def mend() -> None:
            self._cuts.remove(parts)
            for pair in [pair for pair in self._stalled if self.reaches(*pair)]:
                self.at(trio.current_time() + self._rng.uniform(0.1, 1.0), lambda pair=pair: self._resend(pair))

        return mend

    def reaches(self, a: str, b: str) -> bool:
        return not any(parts(a, b) for parts in self._cuts)

    def talk(self, a: str, b: str) -> bool:
        """Both ways: whoever gets no acknowledgements gives a connection up, though what it sends arrives."""
        return not self._cuts or (self.reaches(a, b) and self.reaches(b, a))

    def _give_up(self, host: SimHost, peer: bytes, other: SimHost) -> None:
        # a cut that was mended and came again meanwhile may end it a little early
        if host._peers.get(peer) is other and not self.talk(host.address.host, other.address.host):
            host._lose(peer)

    def _resend(self, pair: tuple[str, str]) -> None:
        if self.reaches(*pair):
            for stream, data in self._stalled.pop(pair, ()):
                stream.take_in(data)

    # -- messages

    def carry(self, stream: SimStream, data: Piece) -> None:
        stream.arrives = max(stream.arrives, trio.current_time() + self.delay())
        self.at(stream.arrives, lambda: self._arrive(stream, data))

    def _arrive(self, stream: SimStream, data: Piece) -> None:
        to = stream.other
        pair = (stream.host.address.host, to.host.address.host)
        if pair in self._stalled or (self._cuts and not self.reaches(*pair)):
            self._stalled.setdefault(pair, []).append((to, data))
        else:
            to.take_in(data)


class SimHost:
    """One host; set :attr:`hung` to make it silent."""

    def __init__(self, network: SimNetwork, address: Address, number: int) -> None:
        self._network = network
        self._address = address
        self._id = peer_id_of_ed25519(number.to_bytes(32, "big"))
        self._handlers: dict[str, Handler] = {}
        self._peers: dict[bytes, SimHost] = {}
        self._streams: dict[bytes, dict[SimStream, None]] = {}
        self._serving: Counter[bytes] = Counter()
        self._nursery: trio.Nursery | None = None
        self.on_disconnect: Callable[[bytes], None] = lambda peer: None
        self.refuses: Callable[[bytes], bool] = lambda peer: False
        self.on_duplicate: Callable[[str], None] = lambda address: None
        self.sent = 0
        self._hung = False
        self._held: list[tuple[SimStream, Piece]] = []

    @property
    def id(self) -> bytes:
        return self._id

    @property
    def address(self) -> Address:
        return self._address

    @property
    def hung(self) -> bool:
        return self._hung

    @hung.setter
    def hung(self, hung: bool) -> None:
        self._hung = hung
        held, self._held = self._held, []
        for stream, data in held:
            stream.take_in(data) if stream.host is self else self._network.carry(stream.other, data)

    def connected(self) -> tuple[bytes, ...]:
        return tuple(self._peers)

    def is_connected(self, peer: bytes) -> bool:
        return peer in self._peers

    def hosts_of(self, peer: bytes) -> tuple[str, ...]:
        return (self._peers[peer].address.host,) if peer in self._peers else ()

    def serve(self, protocol: str, handler: Handler) -> None:
        self._handlers[protocol] = handler

    def refuse(self, protocol: str) -> None:
        """Behave as a host that does not know ``protocol``."""
        del self._handlers[protocol]

    async def dial(self, host: str, port: int) -> bytes:
        if self._nursery is None:
            raise Unreachable("not running")
        await trio.sleep(3 * self._network.delay())
        other = self._network.hosts.get((host, port))
        if other is self:
            raise DialledSelf("this node itself has the address")
        hears = self._network.talk(self._address.host, host)
        if not hears or (other is not None and (other.hung or self.hung)):
            await trio.sleep(3)
            raise Silent("no answer" if not hears else "no handshake")
        if other is None or other._nursery is None or self._nursery is None:
            raise Unreachable("connection refused")
        if other.id == self._id:  # at the same address it is the same node, whose router was replaced
            if other.address != self._address:
                self.on_duplicate(f"{host}:{port}")
                other.on_duplicate(self._address.host)
            raise DialledSelf("the node at the address has this node's identity")
        if other.refuses(self._id) or self.refuses(other.id):
            raise Unreachable("the peer is banned")
        if self._peers.get(other.id) is not other:
            self._lose(other.id)
            self._peers[other.id] = other
        if other._peers.get(self._id) is not self:
            other._lose(self._id)
            other._peers[self._id] = self
        return other.id

    async def open(self, peer: bytes, addresses: Sequence[Address], protocol: str) -> Stream:
        if peer not in self._peers:
            await self._dial_each(peer, addresses)
        await trio.sleep(self._network.delay())
        other = self._peers.get(peer)
        if other is None or other._nursery is None:
            raise Unreachable("the connection was lost")
        if other.hung or self.hung or not self._network.talk(self._address.host, other.address.host):
            await trio.sleep(5)
            raise Silent("no stream")
        if protocol not in other._handlers:
            raise ProtocolRefused(protocol)
        if other._serving[self._id] >= MAX_INBOUND_STREAMS:
            raise Unreachable("the peer reset the stream")
        other._serving[self._id] += 1
        ours, theirs = self._stream(peer), other._stream(self._id)
        ours.other, theirs.other = theirs, ours
        other._nursery.start_soon(other._handle, protocol, theirs)
        try:
            await trio.sleep(self._network.delay())
        except BaseException:
            ours.reset()
            raise
        if ours.broken:
            raise Unreachable("the connection was lost")
        return ours

    async def _dial_each(self, peer: bytes, addresses: Sequence[Address]) -> None:
        others, kind = 0, Unreachable
        for address in addresses:
            try:
                if await self.dial(address.host, address.port) == peer:
                    return
                others += 1
            except Unreachable as exc:
                kind = Silent if isinstance(exc, Silent) else kind
        kind = Replaced if others and others == len(addresses) else kind
        raise kind("no address leads to the peer")

    def _stream(self, peer: bytes) -> SimStream:
        """One end of a stream, which the connection takes with it when it ends."""
        streams = self._streams.setdefault(peer, {})
        stream = SimStream(self, peer, lambda: streams.pop(stream, None))
        streams[stream] = None
        return stream

    def put(self, stream: SimStream, data: Piece) -> None:
        """Send a piece of ``stream``; a host that hangs sends it later."""
        if self._hung:
            self._held.append((stream.other, data))
        else:
            self._network.carry(stream, data)

    def hold(self, stream: SimStream, data: Piece) -> bool:
        """Whether the host hangs, and keeps what came for later."""
        if self._hung:
            self._held.append((stream, data))
        return self._hung

    def count(self) -> None:
        self._network.messages += 1
        self.sent += 1

    async def identify(self, peer: bytes) -> Identity:
        await trio.sleep(2 * self._network.delay())
        other = self._peers.get(peer)
        if other is None or other.hung:
            raise Unreachable("the connection was lost")
        return Identity(frozenset(other._handlers), (other.address.encode(),))

    def disconnect(self, peer: bytes) -> None:
        other = self._peers.get(peer)
        self._lose(peer)
        if other is not None and other._peers.get(self._id) is self:
            if self._network.reaches(self._address.host, other.address.host):
                other._lose(self._id)
            else:  # it does not hear of it
                later = trio.current_time() + BREAKS_AFTER
                self._network.at(later, lambda: other._peers.get(self._id) is self and other._lose(self._id))

    def _lose(self, peer: bytes) -> None:
        """The connection is gone, as this end sees it."""
        if self._peers.pop(peer, None) is not None:
            for stream in list(self._streams.get(peer, ())):
                stream.break_()
            self.on_disconnect(peer)

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
            await stream.finish()
        except Exception:
            stream.reset()
        finally:
            self._serving[stream.peer] -= 1
