"""Joining the ring, and keeping in contact with its members.

``Membership`` is the shell around ``Members``: it makes connections, asks questions, probes, and feeds the outcomes
into the table.  Every message from a peer and every failure to reach one passes through here, so this is the one
place that knows the members.  The exchange of member lists is in ``gossip``.

A rule about what an outcome means for a member belongs in ``table``; the I/O that leads to outcomes belongs here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import structlog
import trio

from spegel_consul.multiaddrs import Address, Contact, contact, parse
from spegel_consul.peers import PeerInfo, RingError, peer_id_from_text, peer_id_to_text
from spegel_consul.places import NOWHERE, Here, Place
from spegel_consul.ring.dht.messages import Message, MessageType, WirePeer, decode, encode, encode_withdrawal
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.dht.protocol_ids import KAD, WITHDRAW
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.members.ban_list import BanList
from spegel_consul.ring.members.duplicate import Duplicate
from spegel_consul.ring.members.gossip import Exchange
from spegel_consul.ring.members.member import Member
from spegel_consul.ring.members.pipeline import Pipeline
from spegel_consul.ring.members.table import Members
from spegel_consul.ring.members.wakeup import WakeUp
from spegel_consul.ring.net.host import DialledSelf, Host, ProtocolRefused, Replaced, Silent, StreamClosed, Unreachable
from spegel_consul.ring.net.loop_time import LoopTime

log = structlog.get_logger(__name__)

JOIN_TIMEOUT = 3.0
_PROBE_TIMEOUT, _DOUBT_TIMEOUT = 2.0, 1.0
_PROBED_TOGETHER = 0.02  # seconds; members that are due so soon are probed together, to save a wake-up
_BAN_LOG_EVERY = 60.0
_WITHDRAW_TIMEOUT = 5.0
NAMED_AGE = 60.0
"""Seconds; the assumed age of the report that a peer is alive which an answer names."""
_SPARE_PIPELINES = 64
_PARALLEL_REVIVALS = 16  # a dial without an answer takes seconds
Told = Callable[[Message | None], None]

_GREET = 8  # on average, a new member is greeted by so many of the nodes that learn of it from others


class Membership:
    """The members of the ring, kept current by probes and gossip.

    ``changed`` is called when a member joined, died or came back, ``lost`` when one died. ``gossip`` is the least
    number of seconds between two exchanges of member lists. ``secondary`` is this node's secondary IP address, and
    ``here`` its place.
    """

    def __init__(
        self,
        host: Host,
        background: Background,
        *,
        registry: Address,
        secondary: str | None = None,
        changed: Callable[[], None],
        lost: Callable[[bytes], None],
        rng: random.Random,
        here: Here,
    ) -> None:
        self.here = here
        self._registries = (registry,) if secondary is None else (registry, replace(registry, host=secondary))
        self._secondary = secondary
        for address in (host.address, *self._registries):
            # the port may not be known yet, but others must be able to dial the IP address
            if not Address(address.host, 1).is_usable(loopback=True):
                raise RingError(f"the ring can't advertise {address.host}: name an IP address that others can dial")
        self.table = Members(host.id, rng=rng)
        self._host = host
        self._background = background
        self._changed = changed
        self._lost = lost
        self._rng = rng
        self._loopback = host.address.is_loopback
        self._pipelines: dict[bytes, Pipeline[Message]] = {}
        self._probe_alarm = WakeUp()
        self._probes_at = math.inf
        self._revive_limit = trio.CapacityLimiter(_PARALLEL_REVIVALS)
        self._bans = BanList()
        self._loop_time = LoopTime(background.spawn)
        self._ban_logged_at = -math.inf
        self.exchange = Exchange(self, host, background, self._loop_time, rng=rng)
        self.duplicate = Duplicate(host, background, lambda: self.routers)
        host.on_disconnect = self.on_disconnect
        host.refuses = lambda peer: self._bans.is_banned(peer, trio.current_time())

    @property
    def me(self) -> WirePeer:
        """This node as it announces itself to others: router first, then registry."""
        return WirePeer(self._host.id, tuple(each.encode() for each in (*self.routers, *self._registries)))

    @property
    def routers(self) -> tuple[Address, ...]:
        """The addresses at which others dial this node's router."""
        here = self._host.address
        return (here,) if self._secondary is None else (here, replace(here, host=self._secondary))

    def place_of(self, peer: bytes) -> Place:
        """The place of a member, or of this node; NOWHERE if it is unknown."""
        if peer == self._host.id:
            return self.here.place
        member = self.table.get(peer)
        return member.place if member is not None else NOWHERE

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        """As :meth:`Router.join`."""
        standing: set[bytes] = set()
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(self._join_through, peer, standing)
        return len(standing)

    async def ask(self, peer: bytes, request: bytes, *, within: float | None = None) -> Message | None:
        """The answer of a member to an encoded message, or None; the table learns the outcome. ``within``: seconds."""
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
                decode,
            )
        warm = self.is_in_touch(peer)
        start = trio.current_time()
        try:
            with self._loop_time.fail_after(within or (member.timeout if warm else member.cold_timeout)):
                answer = await pipeline.ask(request)
        except (RingError, trio.TooSlowError) as exc:
            self._not_answered(member, exc, start)
            return None
        self._answered(member, answer, trio.current_time() - start if warm else None)
        return answer

    def ask_soon(self, peer: bytes, request: bytes, told: Told) -> None:
        """As :meth:`ask`, and call ``told`` with the result, but never during this call.

        A peer that is in touch is asked at once, and without a task that waits for the answer.
        """
        member, pipeline = self.table.get(peer), self._pipelines.get(peer)
        if member is not None and pipeline is not None and pipeline.is_open:
            question = _Question(self, member, request, told)
            if pipeline.send(request, question):
                self._loop_time.start(question, member.timeout)
                return
        self._background.spawn(self._ask_and_tell, peer, request, told)

    async def _ask_and_tell(self, peer: bytes, request: bytes, told: Told) -> None:
        told(await self.ask(peer, request))

    def _answered(self, member: Member, answer: Message, took: float | None) -> None:
        self.heard(member.id, took)
        for closer in answer.closer[: 2 * REPLICAS]:
            if not self.table.confirms(closer, math.inf, trio.current_time()):
                self.named(self.contact(closer), member.id)

    def _not_answered(self, member: Member, error: Exception, start: float) -> None:
        log.debug("ring_question_failed", peer=peer_id_to_text(member.id), error=repr(error))
        # no failure if the question never left because its dial had to wait, or if the peer spoke meanwhile
        never_left = isinstance(error, trio.TooSlowError) and not self._host.is_connected(member.id)
        if member.spoke < start and not never_left:
            self._failed(member.id, error, asked=start)

    def is_in_touch(self, peer: bytes) -> bool:
        """Whether a question to ``peer`` needs no new connection."""
        pipeline = self._pipelines.get(peer)
        return pipeline is not None and pipeline.is_open

    async def withdraw(self, peer: bytes, keys: Sequence[bytes]) -> bool:
        """Tell a member that this node no longer has ``keys`` (empty: any key). False: the caller must repeat it."""
        member = self.table.get(peer)
        if member is None or member.ours is False:
            return True
        with trio.move_on_after(_WITHDRAW_TIMEOUT):
            try:
                stream = await self._host.open(peer, member.routers, WITHDRAW)
                try:
                    stream.send(encode_withdrawal(keys))
                    stream.close()
                    return await stream.receive() == b""  # a peer that refuses resets the stream
                finally:
                    stream.reset()
            except ProtocolRefused:
                return True
            except RingError as exc:
                log.debug("ring_withdrawal_failed", peer=peer_id_to_text(peer), error=str(exc))
        return False

    def doubt(self, peer: bytes) -> None:
        """``peer`` is about to be used: probe it if it was quiet for long."""
        if self.table.doubt(peer, trio.current_time()):
            self._reschedule_probes()

    def protocol_error(self, peer: bytes, error: Exception) -> None:
        """``peer`` broke the protocol; it is banned for a while if that happens too often."""
        now = trio.current_time()
        if self._bans.note(peer, now):
            if now - self._ban_logged_at > _BAN_LOG_EVERY:  # because an attacker can make identities without end
                self._ban_logged_at = now
                log.info("ring_peer_shut_out", peer=peer_id_to_text(peer), error=str(error))
            self._host.disconnect(peer)

    def _forget_pipelines(self) -> None:
        """Drop the pipelines of members that were evicted from the table."""
        if len(self._pipelines) > len(self.table) + _SPARE_PIPELINES:
            for peer in [peer for peer in self._pipelines if self.table.get(peer) is None]:
                del self._pipelines[peer]

    def heard(self, peer: bytes, took: float | None = None) -> None:
        """A message came from ``peer``; if it is an answer, ``took`` seconds after the question."""
        if self.table.answered(peer, trio.current_time(), took):
            log.info("ring_member_back", peer=peer_id_to_text(peer))
            self._changed()

    def _failed(self, peer: bytes, error: Exception, *, asked: float) -> None:
        replaced = isinstance(error, Replaced)
        reset = isinstance(error, StreamClosed | Unreachable) and not isinstance(error, Replaced | Silent)
        if self.table.failed(peer, trio.current_time(), asked=asked, replaced=replaced, reset=reset):
            log.info("ring_member_lost", peer=peer_id_to_text(peer))
            self._lost(peer)
            self._changed()
        if self.table.get(peer) is None:
            self._pipelines.pop(peer, None)
        self._reschedule_probes()

    def on_disconnect(self, peer: bytes) -> None:
        self.table.suspect(peer, trio.current_time())
        self._reschedule_probes()

    def learn(
        self,
        said: Contact,
        *,
        age: float = 0.0,
        direct: bool = False,
        source: bytes = b"",
        place: Place | None = None,
    ) -> None:
        """A peer was named, see :meth:`Members.learn`; a few of the new ones are greeted, and disputed ones."""
        new = self.table.learn(said, trio.current_time(), age=age, direct=direct, source=source, place=place)
        if said.id == self._host.id:
            self.duplicate.named_at(said.routers)
        if new is not None:
            self.joined(new.id)
            if not direct and self._rng.random() < _GREET / len(self.table):
                self._background.spawn(self.exchange.greet, new.id)
        elif not direct and self.table.disputes(said):
            self._background.spawn(self.exchange.greet, said.id)

    def named(self, contact: Contact, source: bytes) -> None:
        """An answer of ``source`` names a peer, not when anybody heard from it: a known member is no younger by it."""
        age = NAMED_AGE if self.table.get(contact.id) is None else math.inf
        self.learn(contact, age=age, source=source)

    def joined(self, peer: bytes) -> None:
        """``peer`` entered the table."""
        log.debug("ring_member_new", peer=peer_id_to_text(peer), members=len(self.table))
        self._changed()

    def contact(self, peer: WirePeer) -> Contact:
        """The addresses of ``peer`` that can be dialled from here, without addresses of this node itself."""
        said = contact(peer.id, peer.addresses, loopback=self._loopback)
        mine = {*self.routers, *self._registries}
        told = [*said.routers, said.registry, said.secondary]
        if peer.id != self._host.id and not mine.isdisjoint(told):
            routers = tuple(address for address in said.routers if address not in mine)
            registries = [each for each in (said.registry, said.secondary) if each not in mine]
            return Contact(peer.id, routers, *registries)
        return said

    async def _join_through(self, peer: PeerInfo, standing: set[bytes]) -> None:
        with suppress(trio.TooSlowError), self._loop_time.fail_after(JOIN_TIMEOUT):
            try:
                found = await self._connect(peer)
            except DialledSelf:
                return
            except RingError as exc:
                # as repr, because the text from a bootstrap may not be printable
                log.debug("ring_join_failed", peer=repr(peer.id), addrs=repr(peer.addrs), error=repr(exc))
                return
            standing.add(found)
            try:
                await self.exchange.swap(found)
            except (RingError, trio.TooSlowError) as exc:
                log.debug("ring_exchange_failed", peer=peer_id_to_text(found), error=repr(exc))

    async def _connect(self, peer: PeerInfo) -> bytes:
        """Connect to the node at the addresses of ``peer``; if ``peer.proven``, only to the peer with its id."""
        known = None
        if peer.id is not None:
            known = peer_id_from_text(peer.id)
            if known == self._host.id:
                self.duplicate.named_at(map(parse, peer.addrs))
                raise DialledSelf("the peer is this node")
            if self._host.is_connected(known):
                return known
        error = RingError("none of its addresses can be dialled")
        for address in map(parse, peer.addrs):
            if address is None or address.http:
                continue
            if address in self.routers:
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
        """Probe dead and quiet members when they are due."""
        while True:
            self._probes_at = self.table.next_probe()
            await self._probe_alarm.wait(self._probes_at)
            for member in self.table.due(trio.current_time() + _PROBED_TOGETHER):
                self._background.spawn(self._probe, member.id)

    def _reschedule_probes(self) -> None:
        """Wake the probing task if a probe is due earlier than it expects."""
        # only for an earlier moment, because of many members that are lost at once each has a moment of its own
        if self.table.next_probe() < self._probes_at:
            self._probe_alarm.wake()

    async def _probe(self, peer: bytes) -> None:
        if self.table.is_alive(peer):
            await self._probe_now(peer)
        else:  # limited, because most dead members don't answer and a dial waits seconds for that
            async with self._revive_limit:
                await self._probe_now(peer)

    async def _probe_now(self, peer: bytes) -> None:
        start, within = trio.current_time(), None
        if self.is_in_touch(peer):
            within = _DOUBT_TIMEOUT if self.table.is_alive(peer) else _PROBE_TIMEOUT
        answer = await self.ask(peer, encode(Message(MessageType.PING)), within=within)
        member = self.table.get(peer)
        if answer is None and (member is None or member.spoke < start):
            self._host.disconnect(peer)  # so that the next probe makes a new connection
        self.table.put_off(peer, trio.current_time())
        self._reschedule_probes()


class _Question:
    """A question to a member that is in touch, whose answer is told without a task that waits for it."""

    def __init__(self, membership: Membership, member: Member, request: bytes, told: Told) -> None:
        self._membership = membership
        self._member = member
        self._request = request
        self._told: Told | None = told
        self._start = trio.current_time()

    def set(self, answer: Message) -> None:
        if (told := self._end()) is not None:
            try:
                self._membership._answered(self._member, answer, trio.current_time() - self._start)
            finally:
                told(answer)

    def fail(self, error: RingError) -> None:
        if (told := self._end()) is not None:
            # the peer closes idle streams and surplus connections, so the question is tried again
            self._membership._background.spawn(self._membership._ask_and_tell, self._member.id, self._request, told)

    def cancel(self) -> None:
        """The time is over."""
        if (told := self._end()) is not None:
            self._membership._not_answered(self._member, trio.TooSlowError(), self._start)
            told(None)

    def _end(self) -> Told | None:
        told, self._told = self._told, None
        if told is not None:
            self._membership._loop_time.stop(self)
        return told
