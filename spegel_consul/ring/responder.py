"""Answers to the Kademlia messages of other peers.

The answers follow the expectations of go-libp2p-kad-dht:

* ADD_PROVIDER is never answered, because Go would take an answer for the answer to its next request;
* a provider may only announce itself;
* FIND_NODE for a node's own id contains the node, because Go checks that before it admits a peer to a full table;
* a brief question, which only nodes of this program ask, is answered without closer peers, and says if the node keeps
  no claims of the key's group, so that the asker need not ask for a verdict;
* dead peers are not named, except those that may return if there is no other;
* if there are more providers than an answer names, half of the named ones are the nearest to the asker.

A record is kept only if a lookup could find it here: its key is the multihash of a string, as all of Spegel's are, and
this node is among the peers nearest to the key.

A new rule about the content of an answer belongs here; a new limit on streams and requests belongs in
``protocol_server``.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from spegel_consul.places import Place
from spegel_consul.ring.dht.announcements import Announcements
from spegel_consul.ring.dht.keys import KEY_LENGTH, SHA2_256, position
from spegel_consul.ring.dht.messages import Message, MessageType, WireError, WirePeer
from spegel_consul.ring.dht.placement import REPLICAS
from spegel_consul.ring.dht.records import Records
from spegel_consul.ring.members.membership import Membership

_Named = tuple[WirePeer, Place]

NEAR = 3 * REPLICAS
"""This node keeps the records of a key if it is among so many nearest peers.

It is more than REPLICAS because the provider may know fewer members than this node.
"""


class Answers:
    """Answers from this node's members, records and announcements.

    ``is_vacant``: whether this node keeps claims, and none of the group that the key of a question names.
    """

    def __init__(
        self,
        membership: Membership,
        records: Records,
        announcements: Announcements,
        *,
        is_vacant: Callable[[bytes], bool],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._records = records
        self._announcements = announcements
        self._is_vacant = is_vacant
        self._rng = rng
        self._position = position(membership.me.id)

    def answer(self, peer: bytes, message: Message) -> Message | None:
        """The answer to ``message`` of ``peer``, or None. Raises WireError if the message breaks the protocol."""
        if message.type is MessageType.PING:
            return Message(MessageType.PING)
        if not message.key:
            raise WireError(f"{message.type.name} has no key")
        if message.type is MessageType.ADD_PROVIDER:
            self._add_provider(peer, message)
            return None
        if message.type is MessageType.GET_PROVIDERS and message.brief:
            vacant = self._is_vacant(message.key)
            return Message(message.type, message.key, (), self._providers(message.key, peer), vacant=vacant)
        table = self._membership.table
        closer = [
            member.wire
            for member in map(table.get, table.closest(position(message.key)))
            if member is not None and member.id != peer
        ]
        if message.type is MessageType.GET_PROVIDERS:
            return Message(message.type, message.key, tuple(closer), self._providers(message.key, peer))
        me = self._membership.me
        if message.key == me.id:
            closer.insert(0, me)
        return Message(message.type, closer=tuple(closer))

    def _add_provider(self, peer: bytes, message: Message) -> None:
        if not self._may_be_asked_for(message.key):
            return
        for provider in message.providers:
            if provider.id == peer:
                self._membership.learn(self._membership.contact(provider), direct=True)
                if self._membership.table.get(peer) is not None:
                    self._records.add(message.key, peer, trio.current_time())

    def _may_be_asked_for(self, key: bytes) -> bool:
        if len(key) != KEY_LENGTH or not key.startswith(SHA2_256):
            return False
        table = self._membership.table
        if len(table) < NEAR:
            return True
        target = position(key)
        nearest = table.closest(target, NEAR)
        return len(nearest) < NEAR or self._position ^ target <= position(nearest[-1]) ^ target

    def _providers(self, key: bytes, asker: bytes) -> tuple[WirePeer, ...]:
        table = self._membership.table
        known = [*filter(None, map(table.get, self._records.providers(key, trio.current_time())))]
        found = [member for member in known if member.alive] or [member for member in known if member.may_return]
        named = [(member.wire, member.place) for member in found]
        if key in self._announcements:
            named.insert(0, (self._membership.me, self._membership.here.place))
        if len(named) > REPLICAS:  # this node among the others, because all ask the same few keepers
            some = self._rng.sample(named, REPLICAS)
            if (at := table.get(asker)) is not None and at.place:
                # half of them, because a false place must not hide the others
                some = list(dict.fromkeys((*self._nearest(named, at.place, REPLICAS // 2), *some)))
            named = some[:REPLICAS]
        return tuple(wire for wire, _ in named)

    def _nearest(self, named: list[_Named], place: Place, count: int) -> list[_Named]:
        """The ``count`` members nearest to a place, in random order within each distance."""
        distances: dict[Place, int] = {}
        by_distance: dict[int, list[_Named]] = {}
        for each in named:
            # a sort of the thousands that have an image would take milliseconds
            if (distance := distances.get(each[1])) is None:
                distance = distances[each[1]] = place.distance(each[1])
            by_distance.setdefault(distance, []).append(each)
        found: list[_Named] = []
        for distance in sorted(by_distance):
            group, missing = by_distance[distance], count - len(found)
            found += self._rng.sample(group, min(len(group), missing))
        return found
