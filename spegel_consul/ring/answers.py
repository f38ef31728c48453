# What a node says when it is asked, as go-libp2p-kad-dht expects it: ADD_PROVIDER is never answered (Go
# would take an answer for that of its next request), a provider may only announce itself, FIND_NODE for a
# node's own id contains the node (Go checks that before it takes a peer into a full table), and dead peers
# are not named.

"""Answers to the Kademlia messages of others."""

from __future__ import annotations

import random

import trio

from spegel_consul.ring.announce import Announcements
from spegel_consul.ring.key import position
from spegel_consul.ring.membership import Membership
from spegel_consul.ring.placement import REPLICAS
from spegel_consul.ring.records import Records
from spegel_consul.ring.wire import Message, MessageType, WireError, WirePeer


class Answers:
    """Answers out of what this node knows."""

    def __init__(
        self, membership: Membership, records: Records, announcements: Announcements, *, rng: random.Random
    ) -> None:
        self._membership = membership
        self._records = records
        self._announcements = announcements
        self._rng = rng

    def answer(self, peer: bytes, message: Message) -> Message | None:
        """The answer to ``message`` of ``peer``, if it has one. Raises WireError if it must not be sent."""
        if message.type is MessageType.PING:
            return Message(MessageType.PING)
        if not message.key:
            raise WireError(f"{message.type.name} came without a key")
        if message.type is MessageType.ADD_PROVIDER:
            self._add_provider(peer, message)
            return None
        table = self._membership.table
        closer = [
            member.wire
            for member in map(table.get, table.closest(position(message.key)))
            if member is not None and member.id != peer
        ]
        if message.type is MessageType.GET_PROVIDERS:
            return Message(message.type, message.key, tuple(closer), self._providers(message.key))
        me = self._membership.me
        if message.key == me.id:
            closer.insert(0, me)
        return Message(message.type, closer=tuple(closer))

    def _add_provider(self, peer: bytes, message: Message) -> None:
        for provider in message.providers:
            if provider.id == peer:
                self._membership.learn(self._membership.contact(provider), direct=True)
                if self._membership.table.get(peer) is not None:
                    self._records.add(message.key, peer, trio.current_time())

    def _providers(self, key: bytes) -> tuple[WirePeer, ...]:
        known = map(self._membership.table.get, self._records.providers(key, trio.current_time()))
        found = [member.wire for member in known if member is not None and member.alive]
        if len(found) > REPLICAS:
            found = self._rng.sample(found, REPLICAS)
        if key in self._announcements:
            found.insert(0, self._membership.me)
        return tuple(found)
