"""The members of the ring as the status page and the metrics show them.

A field that only people read belongs here, not in ``Member``.
"""

from __future__ import annotations

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.peers import host_port, peer_id_to_text
from spegel_consul.places import NOWHERE, Place
from spegel_consul.ring.dht.records import Records
from spegel_consul.ring.members.member import Member

CIRCLE = 1 << 256
"""The number of positions in the ring."""


@dataclass(frozen=True, slots=True)
class MemberView:
    """One other member. ``rtt`` and ``heard_ago`` are seconds.

    ``keys`` is the number of its provider records that this node holds. ``registry`` is ``host:port``, or None while
    unknown. ``at`` is its position in the ring, scaled to [0, 1).
    """

    id: str
    routers: tuple[str, ...]
    registry: str | None
    alive: bool
    failures: int
    rtt: float
    heard_ago: float
    keys: int
    at: float
    place: Place = NOWHERE


def view(member: Member, records: Records, now: float) -> MemberView:
    """The view of ``member`` at ``now`` (Trio clock)."""
    registry = member.registry
    return MemberView(
        id=peer_id_to_text(member.id),
        routers=member.info.addrs,
        registry=host_port(registry.host, registry.port) if registry is not None else None,
        alive=member.alive,
        failures=member.failures,
        rtt=member.rtt,
        heard_ago=max(0.0, now - member.heard),
        keys=records.held_of(member.id),
        at=member.position / CIRCLE,
        place=member.place,
    )
