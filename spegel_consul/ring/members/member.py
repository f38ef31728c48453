"""``Member``: one other peer, as the member table knows it.

A fact about one member belongs here; what a report, an answer or a failure changes belongs in ``table``.
"""

from __future__ import annotations

import math

from spegel_consul.multiaddrs import Address, Contact
from spegel_consul.peers import PeerInfo, peer_id_to_text
from spegel_consul.places import NOWHERE
from spegel_consul.ring.dht.keys import position
from spegel_consul.ring.dht.messages import WirePeer
from spegel_consul.ring.net.host import HANDSHAKE_TIMEOUT

QUIET_AGE = 1200.0
"""Seconds; a member from which no node heard for so long is probed."""

SETTLED = 10.0
"""Seconds; a member that has been in contact for so long holds the records that others have announced to it.

Providers notice a new or restarted member within a second or two, and announce their keys to it in another second.
"""

_DIAL_WAITS = 5.0  # seconds, because a node that just started has many connections to make
_MOST_ADDRESSES = 4  # of one member; a peer may claim any number


class Member:
    """One other peer and what is known of it."""

    __slots__ = (
        "alive",
        "asked",
        "failed_at",
        "failures",
        "heard",
        "id",
        "info",
        "noted",
        "ours",
        "place",
        "position",
        "probe_at",
        "registry",
        "reset",
        "routers",
        "rtt",
        "secondary",
        "since",
        "source",
        "spoke",
        "timed",
        "told_place",
        "wire",
    )

    def __init__(self, contact: Contact, heard: float, source: bytes | None) -> None:
        self.id = contact.id
        self.source = source  # the peer that named it; None once it spoke for itself
        self.position = position(contact.id)
        self.routers: tuple[Address, ...] = ()
        self.info = PeerInfo(peer_id_to_text(contact.id), ())
        self.registry: Address | None = None
        self.secondary: Address | None = None  # the registry's secondary address
        self.wire = WirePeer(contact.id)
        self.heard = heard
        self.spoke = -math.inf  # the last message to this node; `heard` also counts reports of others
        self.alive = True
        self.asked = False  # whether it told its own addresses, or was asked for them, since it was last lost
        self.since = math.inf  # when it entered, came back, or lost a connection, after which it may be a new process
        self.ours: bool | None = None  # whether it is a node of this program; None: not known yet
        self.failures = 0
        self.failed_at = 0.0
        self.reset = False  # whether the last failure was a connection that was reset or refused
        self.probe_at: float | None = None
        """The time of its next probe; infinity while a probe is under way, None if none is needed."""
        self.noted = math.inf
        self.rtt = 0.05
        self.timed = False  # whether `rtt` was measured
        self.place = NOWHERE
        self.told_place = False  # whether it said `place` itself, since it was last lost
        self.update(contact)

    def update(self, contact: Contact) -> None:
        """Take over the addresses of ``contact``; the registry is kept if ``contact`` has none."""
        if contact.routers != self.routers:
            self.routers = contact.routers
            self.info = PeerInfo(self.info.id, tuple(map(str, self.routers)))
        if contact.registry is not None:
            self.registry, self.secondary = contact.registry, contact.secondary
        own = [*self.routers, *filter(None, (self.registry, self.secondary))]
        self.wire = WirePeer(self.id, tuple(address.encode() for address in own))

    def has_other_registry(self, contact: Contact) -> bool:
        """Whether ``contact`` names another registry than the known one."""
        return contact.registry is not None and (
            (contact.registry, contact.secondary) != (self.registry, self.secondary)
        )

    @property
    def due_at(self) -> float:
        """The time at which it is due for a probe, as far as is known now."""
        return self.heard + QUIET_AGE if self.probe_at is None else self.probe_at

    @property
    def may_return(self) -> bool:
        """Whether it is dead only because its connection was reset, and no probe of it has failed since."""
        return not self.alive and self.reset and self.failures == 1

    def is_settled(self, now: float) -> bool:
        """Whether it has been alive and in contact for so long that it holds its records, see SETTLED."""
        return self.alive and now - self.since >= SETTLED

    @property
    def timeout(self) -> float:
        """Seconds to wait for an answer from this member."""
        return min(3.0, max(0.5, 8 * self.rtt))

    @property
    def cold_timeout(self) -> float:
        """Seconds to wait if a new stream is needed, perhaps on a new connection that waits for a free dial.

        Long enough to fail at each address of a member that hangs: it counts as no failure if the dial had to wait.
        """
        return _DIAL_WAITS + HANDSHAKE_TIMEOUT * max(1, min(len(self.routers), _MOST_ADDRESSES))
