# The shell around Members: it makes connections, exchanges member lists, asks questions, and feeds what
# comes of them into the table.  All that hears from a peer or fails to reach one passes through here, so
# this is the one place that knows who is in.
#
# Kademlia learns members slowly, and a record is found only if those who look agree on who is nearest.  So
# nodes of this program exchange their lists: when they join, when they hear of somebody, and now and then
# with anyone.  Go nodes refuse that protocol, and are asked to identify themselves instead.

"""Joining the ring, and staying acquainted with its members."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog
import trio

from spegel_consul.ring import PeerInfo, RingError, peerid
from spegel_consul.ring.address import Address, Contact, contact, parse
from spegel_consul.ring.alarm import Alarm
from spegel_consul.ring.background import Background
from spegel_consul.ring.host import DialledSelf, Host, ProtocolRefused, Stream
from spegel_consul.ring.members import HEARSAY_AGE, Members
from spegel_consul.ring.offences import Offences
from spegel_consul.ring.pace import Pace
from spegel_consul.ring.patience import Patience
from spegel_consul.ring.pipeline import Pipeline
from spegel_consul.ring.placement import REPLICAS
from spegel_consul.ring.wire import (
    Frames,
    MemberReport,
    Message,
    MessageType,
    WireError,
    WirePeer,
    decode_members,
    encode,
    encode_members,
    encode_withdrawal,
)

log = structlog.get_logger(__name__)

KAD = "/spegel/kad/1.0.0"
MEMBERS = "/spegel/members/1.0.0"
WITHDRAW = "/spegel/withdraw/1.0.0"

JOIN_TIMEOUT = 3.0
_COLD_TIMEOUT = 10.0  # for a question that needs a new stream, perhaps a new connection that waits for its turn
_PROBE_TIMEOUT, _DOUBT_TIMEOUT = 2.0, 1.0
_EXCHANGE_TIMEOUT = 5.0
_INTRODUCE_AFTER = 0.2
_PARALLEL_INTRODUCTIONS, _MAX_INTRODUCING = 8, 256
_LONGEST_GOSSIP = 60.0
_TELL_EVERY = 60.0
_SPARE_PIPELINES = 64
_PARALLEL_REVIVALS = 16  # a dial that nobody answers takes seconds
_SERVE_EVERY, _SERVE_BURST = 1.0, 3  # for one peer; a new generation of it may follow the old one at once
_SLICE = 64  # reports that are learnt between two checkpoints
_GREETED_PER_SECOND = 100
_GREET = 8  # how many of those that it hears of a node greets itself


class Membership:
    """Who is in the ring, kept so by talking to them.

    ``changed`` is called when somebody joined, died or came back; ``gossip`` is the least number of seconds
    between two exchanges with somebody.
    """

    def __init__(
        self,
        host: Host,
        background: Background,
        *,
        registry: Address,
        gossip: float,
        changed: Callable[[], None],
        lost: Callable[[bytes], None],
        rng: random.Random,
    ) -> None:
        self._registry = registry
        for address in (host.address, registry):
            # the port may still be open, the rest must be fit for others to dial
            if not Address(address.host, 1).is_usable(loopback=True):
                raise RingError(f"the ring can't advertise {address.host}: name an IP address that others can dial")
        self.table = Members(host.id, rng=rng)
        self._host = host
        self._background = background
        self._gossip = gossip
        self._changed = changed
        self._lost = lost
        self._rng = rng
        self._loopback = host.address.is_loopback
        self._pipelines: dict[bytes, Pipeline] = {}
        self._probe_alarm = Alarm()
        self._greet_limit = trio.CapacityLimiter(4)
        self._introduce_limit = trio.CapacityLimiter(_PARALLEL_INTRODUCTIONS)
        self._introducing: set[bytes] = set()
        self._revive_limit = trio.CapacityLimiter(_PARALLEL_REVIVALS)
        self._offences = Offences()
        self._patience = Patience(background.spawn)
        self._pace = Pace(every=_SERVE_EVERY, burst=_SERVE_BURST)
        self._told_of_offence = -math.inf
        host.serve(MEMBERS, self._serve)
        host.on_disconnect = self._on_disconnect
        host.refuses = lambda peer: self._offences.is_shut_out(peer, trio.current_time())

    @property
    def me(self) -> WirePeer:
        """How this node names itself to others: router first, then registry."""
        return WirePeer(self._host.id, (self._host.address.encode(), self._registry.encode()))

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        """As :meth:`Router.join`."""
        standing: set[bytes] = set()
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._join_through, peer, standing)
        return len(standing)

    async def ask(self, peer: bytes, request: bytes, *, within: float | None = None) -> Message | None:
        """A member's answer to an encoded message, or None; either way it is noted. ``within`` in seconds."""
        member = self.table.get(peer)
        if member is None:
            return None
        pipeline = self._pipelines.get(peer)
        if pipeline is None:
            self._forget_pipelines()
            pipeline = self._pipelines[peer] = Pipeline(
                self._host,
                peer,
                lambda: (self.table.get(peer) or member).routers,
                KAD,
                self._background.spawn,
            )
        warm = self.is_in_touch(peer)
        start = trio.current_time()
        try:
            with self._patience.fail_after(within or (member.timeout if warm else _COLD_TIMEOUT)):
                answer = await pipeline.ask(request)
        except (RingError, trio.TooSlowError) as exc:
            log.debug("ring_question_failed", peer=peerid.to_text(peer), error=repr(exc))
            # if its dial had no turn yet the question never left, and if it spoke meanwhile it lives and is only slow
            never_left = isinstance(exc, trio.TooSlowError) and not self._host.is_connected(peer)
            if member.spoke < start and not never_left:
                self._failed(peer)
            return None
        self.heard(peer, trio.current_time() - start if warm else None)
        for closer in answer.closer[: 2 * REPLICAS]:
            self.learn(self.contact(closer), source=peer)
        return answer

    def is_in_touch(self, peer: bytes) -> bool:
        """Whether a question to ``peer`` needs no new connection."""
        pipeline = self._pipelines.get(peer)
        return pipeline is not None and pipeline.is_open

    async def withdraw(self, peer: bytes, keys: Sequence[bytes]) -> bool:
        """Tell a member that this node has ``keys`` no longer, or (if empty) nothing. False: tell it again."""
        member = self.table.get(peer)
        if member is None or member.ours is False:
            return True
        with trio.move_on_after(_EXCHANGE_TIMEOUT):
            try:
                stream = await self._host.open(peer, member.routers, WITHDRAW)
                try:
                    stream.send(encode_withdrawal(keys))
                    stream.close()
                    return await stream.receive() == b""  # it closes its side when it is done
                finally:
                    stream.reset()
            except ProtocolRefused:
                return True
            except RingError as exc:
                log.debug("ring_withdrawal_failed", peer=peerid.to_text(peer), error=str(exc))
        return False

    def doubt(self, peer: bytes) -> None:
        """Somebody relies on ``peer``: see that it lives if it was quiet for long."""
        if self.table.doubt(peer, trio.current_time()):
            self._probe_alarm.ring()

    def offended(self, peer: bytes, error: Exception) -> None:
        """``peer`` broke the protocol; too often, and nothing of it is listened to for a while."""
        now = trio.current_time()
        if self._offences.note(peer, now):
            if now - self._told_of_offence > _TELL_EVERY:  # identities are cheap, log lines are not
                self._told_of_offence = now
                log.info("ring_peer_shut_out", peer=peerid.to_text(peer), error=str(error))
            self._host.disconnect(peer)

    def _forget_pipelines(self) -> None:
        """Members that had to make room for others leave theirs behind."""
        if len(self._pipelines) > len(self.table) + _SPARE_PIPELINES:
            for peer in [peer for peer in self._pipelines if self.table.get(peer) is None]:
                del self._pipelines[peer]

    def heard(self, peer: bytes, took: float | None = None) -> None:
        """A message came from ``peer``, ``took`` seconds after the question if it is an answer."""
        if self.table.answered(peer, trio.current_time(), took):
            log.info("ring_member_back", peer=peerid.to_text(peer))
            self._changed()

    def _failed(self, peer: bytes) -> None:
        if self.table.failed(peer, trio.current_time()):
            log.info("ring_member_lost", peer=peerid.to_text(peer))
            self._lost(peer)
            self._changed()
        if self.table.get(peer) is None:
            self._pipelines.pop(peer, None)
        self._probe_alarm.ring()

    def _on_disconnect(self, peer: bytes) -> None:
        self.table.suspect(peer, trio.current_time())
        self._probe_alarm.ring()

    def learn(self, said: Contact, *, age: float = 0.0, direct: bool = False, source: bytes = b"") -> None:
        """A peer was named, see :meth:`Members.learn`; some of those heard of are greeted."""
        new = self.table.learn(said, trio.current_time(), age=age, direct=direct, source=source)
        if new is not None:
            self.joined(new.id)
            if not direct and self._rng.random() < _GREET / len(self.table):
                self._background.spawn(self._greet, new.id)

    def joined(self, peer: bytes) -> None:
        """``peer`` entered the table."""
        log.debug("ring_member_new", peer=peerid.to_text(peer), members=len(self.table))
        self._changed()

    def _reports(self) -> bytes:
        now = trio.current_time()
        reports = [MemberReport(self.me, 0)]
        for member in self.table.living():
            if now - member.heard < HEARSAY_AGE:
                reports.append(MemberReport(member.wire, int(now - member.heard)))
        return encode_members(reports)

    async def _merge(self, peer: bytes, body: bytes) -> None:
        """Learn what ``peer`` tells of the members. Raises WireError."""
        for number, report in enumerate(decode_members(body), 1):
            direct = report.peer.id == peer
            # nearly all of a list only confirms what is known, and there are thousands in it
            if direct or not self.table.confirm(report.peer, trio.current_time(), age=report.age):
                self.learn(self.contact(report.peer), age=0.0 if direct else report.age, direct=direct, source=peer)
            if number % _SLICE == 0:
                await trio.lowlevel.checkpoint()
        self.heard(peer)

    def contact(self, peer: WirePeer) -> Contact:
        """What of a peer's addresses can be used from here; nothing that leads back to this node."""
        said = contact(peer.id, peer.addresses, loopback=self._loopback)
        mine = self._host.address in said.routers or said.registry == self._registry
        if mine and peer.id != self._host.id:
            routers = tuple(address for address in said.routers if address != self._host.address)
            return Contact(peer.id, routers, said.registry if said.registry != self._registry else None)
        return said

    async def _greet(self, peer: bytes) -> None:
        # nodes that start together hear of each other together
        await trio.sleep(self._rng.uniform(0, len(self.table) / _GREETED_PER_SECOND))
        async with self._greet_limit:
            if self.table.is_alive(peer):
                try:
                    await self._exchange(peer)
                except (RingError, trio.TooSlowError):
                    self._on_disconnect(peer)  # a probe tells more

    async def _exchange(self, peer: bytes) -> None:
        """Tell ``peer`` all members and learn its. Raises RingError or TooSlowError."""
        member = self.table.get(peer)
        with self._patience.fail_after(_EXCHANGE_TIMEOUT):
            try:
                stream = await self._host.open(peer, member.routers if member else (), MEMBERS)
            except ProtocolRefused:
                await self._identify(peer)
                self._speaks(peer, ours=False)
                return
            try:
                stream.send(self._reports())
                await self._merge(peer, await _one_message(stream))
                self._speaks(peer, ours=True)
                stream.close()
            except BaseException:
                stream.reset()
                raise

    async def _identify(self, peer: bytes) -> None:
        identity = await self._host.identify(peer)
        if KAD in identity.protocols:
            self.learn(self.contact(WirePeer(peer, identity.addresses)), direct=True)
            self.heard(peer)
            # as Kademlia joins: ask for oneself, which tells the peer of us and us of its neighbours
            await self.ask(peer, encode(Message(MessageType.FIND_NODE, self._host.id)))

    async def introduce(self, peer: bytes) -> None:
        """Learn who a stranger is that sends Kademlia messages; one of our own has told by then."""
        if peer in self._introducing or len(self._introducing) >= _MAX_INTRODUCING:
            return  # it is asked again when it opens the next stream
        self._introducing.add(peer)
        try:
            await trio.sleep(_INTRODUCE_AFTER)
            async with self._introduce_limit:
                if self.table.get(peer) is None:
                    with suppress(RingError):
                        await self._identify(peer)
        finally:
            self._introducing.discard(peer)

    async def _serve(self, stream: Stream) -> None:
        if not self._pace.admits(stream.peer, trio.current_time()):
            raise RingError("the peer asks for the members too often")
        with trio.fail_after(_EXCHANGE_TIMEOUT):
            body = await _one_message(stream)
            stream.send(self._reports())
            stream.close()
        try:
            await self._merge(stream.peer, body)
        except WireError as exc:
            self.offended(stream.peer, exc)
            raise
        self._speaks(stream.peer, ours=True)

    def _speaks(self, peer: bytes, *, ours: bool) -> None:
        if (member := self.table.get(peer)) is not None:
            member.ours = ours

    async def _join_through(self, peer: PeerInfo, standing: set[bytes]) -> None:
        with suppress(trio.TooSlowError), self._patience.fail_after(JOIN_TIMEOUT):
            try:
                found = await self._connect(peer)
            except DialledSelf:
                return
            except RingError as exc:
                # as repr: what a bootstrap names need not be text that can be printed
                log.debug("ring_join_failed", peer=repr(peer.id), addrs=repr(peer.addrs), error=repr(exc))
                return
            standing.add(found)
            try:
                await self._exchange(found)
            except (RingError, trio.TooSlowError) as exc:
                log.debug("ring_exchange_failed", peer=peerid.to_text(found), error=repr(exc))

    async def _connect(self, peer: PeerInfo) -> bytes:
        """A connection to whoever is at the addresses of ``peer``, or to itself alone if it must be proven."""
        known = None
        if peer.id is not None:
            known = peerid.from_text(peer.id)
            if known == self._host.id:
                raise DialledSelf("the peer is this node")
            if self._host.is_connected(known):
                return known
        error = RingError("none of its addresses can be dialled")
        for address in map(parse, peer.addrs):
            if address is None or address.http:
                continue
            if address == self._host.address:
                raise DialledSelf("the peer is this node")
            try:
                found = await self._host.dial(address.host, address.port)
                if found == known or not peer.proven:
                    return found
                error = RingError("another peer has its address now")
                if self.table.get(found) is None:
                    self._host.disconnect(found)
            except DialledSelf:
                raise
            except RingError as exc:
                error = exc
        raise error

    async def probe_forever(self) -> None:
        """Ask the dead and the doubtful whether they live."""
        while True:
            await self._probe_alarm.wait(self.table.next_probe())
            for member in self.table.due(trio.current_time()):
                self._background.spawn(self._probe, member.id)

    async def _probe(self, peer: bytes) -> None:
        if self.table.is_alive(peer):
            await self._probe_now(peer)
        else:  # most of them don't answer, and a dial waits long for that
            async with self._revive_limit:
                await self._probe_now(peer)

    async def _probe_now(self, peer: bytes) -> None:
        start = trio.current_time()
        within = _COLD_TIMEOUT  # a machine that just starts has many connections to make
        if self.is_in_touch(peer):
            within = _DOUBT_TIMEOUT if self.table.is_alive(peer) else _PROBE_TIMEOUT
        answer = await self.ask(peer, encode(Message(MessageType.PING)), within=within)
        member = self.table.get(peer)
        if answer is None and (member is None or member.spoke < start):
            self._host.disconnect(peer)  # so that the next probe tries a new connection

    async def gossip_forever(self) -> None:
        """Exchange lists with somebody now and then; ever less often while nothing changes."""
        wait = self._gossip
        while True:
            known = len(self.table)
            await trio.sleep(max(wait, known / 20) * self._rng.uniform(0.75, 1.25))
            wait = self._gossip if len(self.table) != known else min(_LONGEST_GOSSIP, wait * 1.5)
            # those who don't speak it are greeted when they are new, and asked by lookups
            if living := [member for member in self.table.living() if member.ours is not False]:
                self._background.spawn(self._greet, self._rng.choice(living).id)


async def _one_message(stream: Stream) -> bytes:
    """The first message on ``stream``. Raises RingError if it ends before."""
    frames = Frames()
    while data := await stream.receive():
        for body in frames.feed(data):
            return body
    raise RingError("the stream ended before a message was complete")
