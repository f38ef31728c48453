"""The exchange of member lists with peers ("gossip"), and the identification of unknown peers.

Kademlia learns members slowly, and a record is found only if the nodes agree on the nearest peers of a key.  So nodes
of this program exchange their lists: when they join, when a new member is reported, and periodically with a random
member.  Go nodes refuse that protocol; they are asked to identify themselves (libp2p identify) instead.

Consul tells this node its place a moment after the ring has begun, and until then others take it for a near one.  So a
new place is told at once to those that were told another one lately.

The table (``table``) decides what a report changes; a rule about when lists are exchanged belongs here.
"""

from __future__ import annotations

import itertools
import math
import random
from contextlib import suppress
from typing import Protocol

import trio

from spegel_consul.bounded_dict import BoundedDict
from spegel_consul.multiaddrs import Contact
from spegel_consul.peers import RingError
from spegel_consul.places import Here, Place
from spegel_consul.ring.dht.messages import (
    Frames,
    MemberReport,
    Message,
    MessageType,
    WireError,
    WirePeer,
    decode_members,
    encode,
    encode_members,
)
from spegel_consul.ring.dht.protocol_ids import KAD, MEMBERS
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.members.rate_limit import RateLimit
from spegel_consul.ring.members.table import HEARSAY_AGE, Members
from spegel_consul.ring.members.wakeup import WakeUp
from spegel_consul.ring.net.host import Host, ProtocolRefused, Stream
from spegel_consul.ring.net.loop_time import LoopTime

_TIMEOUT = 5.0
_INTRODUCE_AFTER = 0.2
_PARALLEL_INTRODUCTIONS, _MAX_INTRODUCING = 8, 256
_SHORTEST_GOSSIP, _LONGEST_GOSSIP = 5.0, 60.0  # seconds between two exchanges
_SERVE_EVERY, _SERVE_BURST = 1.0, 3  # for one peer; a new generation of its router may follow the old one at once
_SLICE = 64  # reports that are learnt between two checkpoints
_GREETED_PER_SECOND = 100
_TOLD = 64  # peers that are told a new place at once


class Acquaintances(Protocol):
    """The part of the membership that an exchange reads from and reports to.

    The membership starts exchanges, so the exchange knows this protocol instead of the membership.
    """

    table: Members
    here: Here

    @property
    def me(self) -> WirePeer:
        """How this node names itself to others."""
        ...

    def contact(self, peer: WirePeer) -> Contact:
        """The addresses of a peer that can be used from here."""
        ...

    def learn(
        self,
        said: Contact,
        *,
        age: float = 0.0,
        direct: bool = False,
        source: bytes = b"",
        place: Place | None = None,
    ) -> None:
        """A peer was named; see :meth:`Members.learn`."""
        ...

    def heard(self, peer: bytes) -> None:
        """A message came from ``peer``."""
        ...

    def on_disconnect(self, peer: bytes) -> None:
        """``peer`` may be gone; it is probed."""
        ...

    def protocol_error(self, peer: bytes, error: Exception) -> None:
        """``peer`` broke the protocol."""
        ...

    async def ask(self, peer: bytes, request: bytes) -> Message | None:
        """A member's answer to an encoded message, or None."""
        ...


class Exchange:
    """Exchanges lists for ``membership``."""

    def __init__(
        self,
        membership: Acquaintances,
        host: Host,
        background: Background,
        loop_time: LoopTime,
        *,
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._host = host
        self._background = background
        self._loop_time = loop_time
        self._rng = rng
        self._greet_limit = trio.CapacityLimiter(4)
        self._introduce_limit = trio.CapacityLimiter(_PARALLEL_INTRODUCTIONS)
        self._introducing: set[bytes] = set()
        self._told: BoundedDict[bytes, None] = BoundedDict(_TOLD)  # peers, those of the last exchanges
        self._serve_limit = RateLimit(every=_SERVE_EVERY, burst=_SERVE_BURST)
        host.serve(MEMBERS, self._serve)

    def _reports(self, to: bytes) -> bytes:
        self._told[to] = None
        now = trio.current_time()
        reports = [
            MemberReport(member.wire, int(now - member.heard), member.place)
            for member in self._membership.table
            if member.alive and now - member.heard < HEARSAY_AGE
        ]
        return encode_members([MemberReport(self._membership.me, 0, self._membership.here.place), *reports])

    async def merge(self, peer: bytes, body: bytes) -> None:
        """Learn the member list of ``peer``. Raises WireError."""
        reports = decode_members(body)
        while some := list(itertools.islice(reports, _SLICE)):
            # nearly all of the thousands of reports only confirm a known member, and are cheap
            for named, age, place in self._membership.table.confirm(some, trio.current_time(), peer):
                direct = named.id == peer
                said = self._membership.contact(named)
                self._membership.learn(said, age=0.0 if direct else age, direct=direct, source=peer, place=place)
            await trio.lowlevel.checkpoint()
        self._membership.heard(peer)

    async def greet(self, peer: bytes) -> None:
        # a random delay, because nodes that start together learn of each other together
        await trio.sleep(self._rng.uniform(0, len(self._membership.table) / _GREETED_PER_SECOND))
        async with self._greet_limit:
            if self._membership.table.is_alive(peer):
                try:
                    await self.swap(peer)
                except (RingError, trio.TooSlowError):
                    self._membership.on_disconnect(peer)  # the next probe decides

    async def swap(self, peer: bytes) -> None:
        """Exchange member lists with ``peer``. Raises RingError or TooSlowError."""
        member = self._membership.table.get(peer)
        with self._loop_time.fail_after(_TIMEOUT):
            try:
                stream = await self._host.open(peer, member.routers if member else (), MEMBERS)
            except ProtocolRefused:
                await self._identify(peer)
                self._note_protocols(peer, ours=False)
                return
            try:
                stream.send(self._reports(peer))
                await self.merge(peer, await _one_message(stream))
                self._note_protocols(peer, ours=True)
                stream.close()
            except BaseException:
                stream.reset()
                raise

    async def _identify(self, peer: bytes) -> None:
        identity = await self._host.identify(peer)
        if KAD in identity.protocols:
            self._membership.learn(self._membership.contact(WirePeer(peer, identity.addresses)), direct=True)
            self._membership.heard(peer)
            # as a Kademlia join: asking for our own id tells the peer of us, and us of its neighbours
            await self._membership.ask(peer, encode(Message(MessageType.FIND_NODE, self._host.id)))

    async def introduce(self, peer: bytes) -> None:
        """Identify an unknown peer that sends Kademlia messages; a node of this program has sent its list by then."""
        if peer in self._introducing or len(self._introducing) >= _MAX_INTRODUCING:
            return  # its next stream leads here again
        self._introducing.add(peer)
        try:
            await trio.sleep(_INTRODUCE_AFTER)
            async with self._introduce_limit:
                if self._membership.table.get(peer) is None:
                    with suppress(RingError):
                        await self._identify(peer)
        finally:
            self._introducing.discard(peer)

    async def _serve(self, stream: Stream) -> None:
        if not self._serve_limit.admits(stream.peer, trio.current_time()):
            raise RingError("the peer asks for the members too often")
        with trio.fail_after(_TIMEOUT):
            body = await _one_message(stream)
            stream.send(self._reports(stream.peer))
            stream.close()
        try:
            await self.merge(stream.peer, body)
        except WireError as exc:
            self._membership.protocol_error(stream.peer, exc)
            raise
        self._note_protocols(stream.peer, ours=True)

    def _note_protocols(self, peer: bytes, *, ours: bool) -> None:
        if (member := self._membership.table.get(peer)) is not None:
            member.ours = ours

    async def gossip_forever(self) -> None:
        """Exchange lists with a random member periodically; less and less often while nothing changes."""
        wait = _SHORTEST_GOSSIP
        while True:
            known = len(self._membership.table)
            await trio.sleep(max(wait, known / 20) * self._rng.uniform(0.75, 1.25))
            wait = _SHORTEST_GOSSIP if len(self._membership.table) != known else min(_LONGEST_GOSSIP, wait * 1.5)
            # members that refuse the protocol are greeted when they are new, and asked by lookups
            if living := [member for member in self._membership.table.living() if member.ours is not False]:
                self._background.spawn(self.greet, self._rng.choice(living).id)

    async def tell_places_forever(self) -> None:
        """Exchange lists again with those that know another place of this node, when it changes."""
        alarm, watchers = WakeUp(), self._membership.here.watchers
        watchers.add(alarm.wake)
        try:
            while True:
                await alarm.wait(math.inf)
                told = list(self._told)
                self._told.clear()
                for peer in told:
                    self._background.spawn(self.greet, peer)
        finally:
            watchers.discard(alarm.wake)


async def _one_message(stream: Stream) -> bytes:
    """The first message on ``stream``. Raises RingError if it ends before."""
    frames = Frames()
    while data := await stream.receive():
        for body in frames.feed(data):
            return body
    raise RingError("the stream ended before a message was complete")
