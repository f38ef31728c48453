"""``KadRouter``: the ``Router`` over a ``Host``.

The ring is a Kademlia DHT in which every node knows every other node ("one hop").  On the wire it is the same as
go-libp2p-kad-dht under Spegel's prefix.  Plain objects take the decisions, and this module carries them out:

    Membership      the members, and questions to them (a shell around Members)
    Announcements   the keys to announce, and to which peers   <- announce(), and every change of the members
    Records         the provider records of others             <- ADD_PROVIDER
    Lookup          the peers to ask for one key, and the end  <- KeySearch (a shell too), lookup()
    Answers         the answers to questions of others         <- Service (a shell too)
    Claims          the groups that this node keeps            <- Claiming (a shell too), claim()

ADD_PROVIDER has no answer in Kademlia, so each batch of them is followed by a PING.  Requests of one stream are
handled in order, so the answer to the PING acknowledges the whole batch.

A new decision belongs in one of these objects; a new background task of the router belongs here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from functools import partial

import structlog
import trio

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import PeerInfo, Provider, RingError, peer_id_from_text, peer_id_to_text
from spegel_consul.places import Here
from spegel_consul.ring.claiming import Claiming
from spegel_consul.ring.dht.announcements import Announcements, Batch
from spegel_consul.ring.dht.claim_forest import CHAIN
from spegel_consul.ring.dht.claim_reports import ClaimReport, Verdict
from spegel_consul.ring.dht.iterative_lookup import AnswerTimes, Lookup
from spegel_consul.ring.dht.keys import dht_key, position
from spegel_consul.ring.dht.messages import Message, MessageType, encode
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.dht.records import Records
from spegel_consul.ring.key_search import KeySearch
from spegel_consul.ring.member_view import CIRCLE, MemberView, view
from spegel_consul.ring.members.background import Background
from spegel_consul.ring.members.membership import Membership
from spegel_consul.ring.members.table import FULL
from spegel_consul.ring.members.wakeup import WakeUp
from spegel_consul.ring.net.host import Host
from spegel_consul.ring.net.routes import has_route, likeliest
from spegel_consul.ring.protocol_server import Service
from spegel_consul.ring.responder import Answers

log = structlog.get_logger(__name__)

TTL = 900.0
"""Seconds between announcements of a key (Spegel's KeyTTL); a record is valid for 4 minutes longer."""

_VALIDITY_MARGIN = 240.0
_BATCH_TIMEOUT = 10.0
_REBALANCE_AFTER = 0.1
_SWEEP_EVERY = 60.0
_SLICE = 250  # keys that are handled between two checkpoints


class KadRouter:
    """A node of the ring.

    ``registry`` is the address at which others dial this node's registry, ``(IP address, port)``. Its port is also
    assumed for peers that announce no registry, as Go Spegel does. ``secondary`` is this node's second address: an IP
    address of the other family at which the same ports serve the router and the registry. ``ttl``, ``hedge`` and
    ``gossip`` are seconds: between two announcements of a key, without an answer before one more peer is asked (the
    initial value), and between two member exchanges at least. ``follow_chain``: the length of the chains that this
    node makes as a keeper of downloads; with 0 it keeps none, and others take the next nearest node for a keeper, as
    they do for a Go Spegel. With ``successor_of`` the router takes over the keys and the records of that router.
    ``here`` is this node's place, which it tells the members and by which it prefers providers.
    Raises RingError if an address to advertise is not an IP address that others can dial.
    """

    def __init__(
        self,
        host: Host,
        *,
        registry: tuple[str, int],
        secondary: str | None = None,
        ttl: float = TTL,
        follow_chain: int = CHAIN,
        successor_of: KadRouter | None = None,
        rng: random.Random | None = None,
        here: Here | None = None,
    ) -> None:
        self._host = host
        self._here = here or Here()
        self._position = position(host.id)
        self._registry_port = registry[1]
        self._times = AnswerTimes()
        self._rng = rng or random.Random()
        self._background = Background()
        self._membership = Membership(
            host,
            self._background,
            registry=Address(*registry, http=True),
            secondary=secondary,
            changed=self._on_change,
            lost=self._on_loss,
            rng=self._rng,
            here=self._here,
        )
        self._members = self._membership.table
        self._told_full = False
        self._records: Records = successor_of._records if successor_of else Records(validity=ttl + _VALIDITY_MARGIN)
        self._announcements = Announcements(self._members.closest, ttl=ttl, rng=self._rng)
        if successor_of is not None:
            self._announcements.add(successor_of._announcements.keys())
        self._claiming: Claiming = Claiming(
            host,
            self._background,
            self._membership,
            self._provider,
            successor_of._claiming if successor_of else None,
            follow_chain,
        )
        self._answers = Answers(
            self._membership,
            self._records,
            self._announcements,
            is_vacant=self._claiming.keeps_no if follow_chain else lambda key: False,
            rng=self._rng,
        )
        self._searches: set[KeySearch] = set()
        self._announce_alarm = WakeUp()
        self._announces_at = math.inf
        self._rebalance = False
        self._leaving: bool = successor_of is not None and successor_of._leaving
        # peers without a connection have a limit of their own, because a dial to one that is gone takes seconds
        self._tell_limit, self._tell_cold_limit = trio.CapacityLimiter(8), trio.CapacityLimiter(32)
        self._service = Service(host, self._background, self._membership, self._records, self._answers)
        if follow_chain:
            self._service.serve_claims(self._claiming)

    @property
    def me(self) -> PeerInfo:
        return PeerInfo(peer_id_to_text(self._host.id), tuple(map(str, self._membership.routers)))

    def members(self) -> tuple[PeerInfo, ...]:
        return self._members.infos()

    def is_dead(self, peer_id: str) -> bool:
        """Whether it is a member and dead; a provider that is no member, as in a full table, may be alive."""
        member = self._members.get(peer_id_from_text(peer_id))
        return member is not None and not member.alive

    @property
    def warning(self) -> str | None:
        """A problem of the ring that an operator has to solve; None if there is none."""
        return FULL if self._members.full else self._membership.duplicate.problem

    def view(self) -> tuple[MemberView, ...]:
        """All other members, including dead ones, for display."""
        now = trio.current_time()
        return tuple(view(member, self._records, now) for member in self._members)

    @property
    def at(self) -> float:
        """This node's position in the ring, scaled to [0, 1)."""
        return self._position / CIRCLE

    @property
    def records(self) -> int:
        """The number of provider records that this node holds for others."""
        return len(self._records)

    @property
    def open_lookups(self) -> int:
        """The number of lookups that have not ended."""
        return len(self._searches)

    @property
    def unannounced(self) -> int:
        """The number of (key, peer) pairs that are not acknowledged yet."""
        return self._announcements.pending

    def lookup(self, key: str, *, count: int = 3) -> KeySearch:
        if self._background.nursery is None:
            raise RingError("the ring is not running")
        raw = dht_key(key)
        at = position(raw)
        closest, keeper = self._members.closest_of(at), self._claiming.next_asked(raw)
        lookup = Lookup(
            closest,
            count=count,
            exclude=self._host.id,
            hedge=self._times.hedge,
            # a keeper that got claims only needs one more stream, once
            in_touch=lambda peer: (
                self._membership.is_in_touch(peer) or (peer == keeper and self._host.is_connected(peer))
            ),
            settled=self._is_settled,
            own_settled=self._is_keeper(at, closest()),
            busy=keeper,
            rng=self._rng,
        )
        # closer peers are of use only to a node whose neighbours of the key have changed
        brief = all(map(lookup.is_settled, closest()))
        request = encode(Message(MessageType.GET_PROVIDERS, raw, brief=brief))
        search = KeySearch(
            lookup,
            self._times,
            lambda peer, told: self._membership.ask_soon(peer, request, told),
            partial(self._on_answer, raw, keeper),
            self._finish,
            self._searches,
        )
        own = [*map(self._known, self._records.providers(raw, trio.current_time()))]
        if own:
            self._offer(search, own, own=True)
        return search

    async def announce(self, added: Collection[str], removed: Collection[str] = ()) -> None:
        if self._leaving:
            return
        for change, names in ((self._announcements.remove, removed), (self._announcements.add, added)):
            keys = list(map(dht_key, names))
            for start in range(0, len(keys), _SLICE):
                change(keys[start : start + _SLICE])
                self._announce_alarm.wake()
                await trio.lowlevel.checkpoint()

    async def claim(self, group: str, report: ClaimReport) -> Verdict:
        return await self._claiming.claim(group, report)

    def is_vacant(self, group: str) -> bool:
        return self._claiming.is_vacant(group)

    async def leave(self) -> None:
        self._leaving = True
        told = set(self._announcements.clear()).intersection(self._host.connected())
        async with trio.open_nursery() as nursery:
            for peer in told:
                nursery.start_soon(self._membership.withdraw, peer, ())

    async def join(self, peers: Sequence[PeerInfo]) -> int:
        return await self._membership.join(peers)

    def retire(self) -> None:
        """Accept no more connections, because a successor has taken over."""
        self._host.retire()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        failure: RingError | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(self._host.run)
                except RingError as exc:  # raised below, because the nursery would wrap it in a group
                    failure = exc
                else:
                    self._background.nursery = nursery
                    nursery.start_soon(self._membership.probe_forever)
                    nursery.start_soon(self._membership.exchange.gossip_forever)
                    nursery.start_soon(self._membership.exchange.tell_places_forever)
                    nursery.start_soon(self._announce_forever)
                    nursery.start_soon(self._sweep_forever)
                    task_status.started()
        finally:
            self._background.nursery = None
            for search in list(self._searches):
                search.end()  # because nobody is asked any more
        if failure is not None:
            raise failure

    def _on_answer(self, key: bytes, keeper: bytes | None, search: KeySearch, peer: bytes, answer: Message) -> None:
        if answer.vacant and peer == keeper:
            self._claiming.told_vacant(key)
        if answer.providers:
            named = list(map(self._membership.contact, answer.providers))
            for provider in named[:REPLICAS]:  # so that a provider can be probed
                self._membership.named(provider, peer)
            self._offer(search, named)

    def _is_settled(self, peer: bytes) -> bool:
        member = self._members.get(peer)
        return member is not None and member.is_settled(trio.current_time())

    def _is_keeper(self, at: int, others: Sequence[bytes]) -> bool:
        """Whether this node is among the peers that are told of keys at this position; ``others``: the nearest."""
        # one less, because a provider does not announce to itself
        return len(others) < REPLICAS or self._position ^ at < position(others[-1]) ^ at

    def _known(self, peer: bytes) -> Contact:
        member = self._members.get(peer)
        return Contact(peer, member.routers, member.registry, member.secondary) if member else Contact(peer, ())

    def _offer(self, search: KeySearch, found: Iterable[Contact], *, own: bool = False) -> None:
        """Yield the providers that are not dead, the nearest first; those of one distance in random order.

        So not all nodes fetch from the same one, and a lookup that ends early has found the near ones.
        """
        contacts, last = {}, set()
        for each in found:
            member = self._members.get(each.id)
            if (each.registry or each.routers) and (member is None or member.alive or member.may_return):
                contacts[each.id] = each
                if member is not None and not member.alive:
                    last.add(each.id)
        order = self._rng.sample(list(contacts), len(contacts))
        if here := self._here.place:
            order.sort(key=lambda peer: here.distance(self._membership.place_of(peer)))
        named = {peer: self._registries(contacts[peer])[0] for peer in order}
        for peer in search.lookup.offer(named, last=last, own=own):
            self._yield(search, contacts[peer])

    def _finish(self, search: KeySearch) -> None:
        """Yield the providers that may be gone, unless a probe has failed meanwhile."""
        for peer in search.lookup.finish():
            member = self._members.get(peer)
            if member is not None and (member.alive or member.may_return):
                self._yield(search, self._known(peer))

    def _yield(self, search: KeySearch, named: Contact) -> None:
        self._membership.doubt(named.id)
        search.found(self._provider(named))

    def _registries(self, of: Contact) -> tuple[Address, Address | None]:
        """The address of a peer's registry and the secondary one; by its router if it announces none."""
        if of.registry is not None:
            return of.registry, of.secondary
        proven = self._host.hosts_of(of.id)
        first = likeliest(of.routers, proven)
        others = [each for each in of.routers if each.is_ipv6 != first.is_ipv6]
        other = Address(likeliest(others, proven).host, self._registry_port) if others else None
        return Address(first.host, self._registry_port), other

    def _provider(self, named: Contact) -> Provider:
        address, secondary = self._registries(named)
        if secondary is not None and not has_route(address):
            address, secondary = secondary, None
        other = (secondary.host, secondary.port) if secondary is not None else None
        member = self._members.get(named.id)
        rtt = member.rtt if member is not None and member.timed else None
        at = self._membership.place_of(named.id)
        return Provider(peer_id_to_text(named.id), (address.host, address.port), other, at, rtt)

    def _on_change(self) -> None:
        if self._members.full != self._told_full:
            self._told_full = self._members.full
            if self._told_full:
                log.warning("ring_table_full", members=len(self._members), means=FULL)
            else:
                log.info("ring_table_has_room", members=len(self._members))
        self._rebalance = True
        self._announce_alarm.wake()

    def _on_loss(self, peer: bytes) -> None:
        self._announcements.lost(peer)

    async def _announce_forever(self) -> None:
        while True:
            self._announces_at = self._announcements.wake_at()
            await self._announce_alarm.wait(self._announces_at)
            if self._rebalance:
                await trio.sleep(_REBALANCE_AFTER)  # members often join in groups
                self._rebalance = False
                keys = self._announcements.around(self._members.take_changes())
                for start in range(0, len(keys), _SLICE):
                    self._announcements.place(keys[start : start + _SLICE])
                    await trio.lowlevel.checkpoint()
            for batch in self._announcements.batches(trio.current_time()):
                self._background.spawn(self._tell, batch)

    async def _tell(self, batch: Batch) -> None:
        if self._members.get(batch.peer) is None:  # evicted from a full table while it was alive
            self._announcements.lost(batch.peer)
            return
        async with self._tell_limit if self._membership.is_in_touch(batch.peer) else self._tell_cold_limit:
            withdrawn = not batch.withdrawn or await self._membership.withdraw(batch.peer, batch.withdrawn)
            told = not batch.keys
            # the keys are announced even to a peer that refuses withdrawals
            if batch.keys and (withdrawn or self._host.is_connected(batch.peer)):
                me = (self._membership.me,)
                request = b"".join(encode(Message(MessageType.ADD_PROVIDER, key, providers=me)) for key in batch.keys)
                barrier = encode(Message(MessageType.PING))
                told = await self._membership.ask(batch.peer, request + barrier, within=_BATCH_TIMEOUT) is not None
        now = trio.current_time()
        if withdrawn and told:
            due = self._announcements.told(batch, now)
        else:
            part = Batch(batch.peer, batch.keys if told else (), batch.withdrawn if withdrawn else ())
            due = self._announcements.failed(batch, now, told=part)
        # only for an earlier moment, because a scan of all peers after each batch would dominate a start
        if due < self._announces_at:
            self._announce_alarm.wake()

    async def _sweep_forever(self) -> None:
        while True:
            await trio.sleep(_SWEEP_EVERY)
            for _ in self._records.sweep(trio.current_time()):
                await trio.lowlevel.checkpoint()
