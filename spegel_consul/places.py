"""Places: where a node is (datacenter, zone, rack), and how far two nodes are from each other.

A place has three names, each of which may be unknown. Bytes that leave a zone cost money, and bytes that leave a
datacenter take long, so nodes ask near ones first. A place is what a node says of itself and proves nothing: a node
with a wrong place attracts or sheds load, and its bytes are verified as those of any other.

A node whose place is unknown counts as one of the same datacenter and never as far: a Go Spegel does not tell its
place, and an older node does not yet. If it counted as far, a rolling upgrade would cut the cluster into two parts.

A rule about the names of places, or about what is near, belongs here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from spegel_consul.lean.dataclass import dataclass

MAX_NAME = 64
"""Longest name of a datacenter, zone or rack."""

SAME_RACK, SAME_ZONE, SAME_DATACENTER, ELSEWHERE = range(4)
"""Distances of two places."""

DISTANCE_NAMES = ("rack", "zone", "datacenter", "other")
"""Names of the distances for people and metrics, in the order of the distances."""

_NAME = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_ALLOWED = "letters, digits and . _ : -"
_UNSET = re.compile(r"\$\{[^}]*\}\Z")
_LONGEST_WIRE = 3 * MAX_NAME + 2


@dataclass(frozen=True, slots=True)
class Place:
    """A place; "" is an unknown name."""

    datacenter: str = ""
    zone: str = ""
    rack: str = ""

    def __bool__(self) -> bool:
        """Whether anything is known of the place."""
        return bool(self.datacenter or self.zone or self.rack)

    def __str__(self) -> str:
        """``datacenter/zone/rack``, without unknown names at the end: the form that :func:`parse_place` reads."""
        text = f"{self.datacenter}/{self.zone}/{self.rack}".rstrip("/")
        return f"{text}/" if text == self.datacenter != "" else text

    @property
    def area(self) -> tuple[str, str]:
        """The datacenter and the zone."""
        return self.datacenter, self.zone

    @property
    def areas(self) -> tuple[tuple[str, ...], ...]:
        """The known ones of the rack, the zone and the datacenter, the smallest first."""
        names = self.datacenter, self.zone, self.rack
        return tuple(names[:length] for length in (3, 2, 1) if names[length - 1])

    def or_else(self, other: Place) -> Place:
        """This place, with the names of ``other`` where its own are unknown."""
        found = Place(self.datacenter or other.datacenter, self.zone or other.zone, self.rack or other.rack)
        return found or NOWHERE

    def distance(self, other: Place) -> int:
        """From 0 (the same rack) to 3 (another datacenter); 2 if too little is known."""
        if _differ(self.datacenter, other.datacenter):
            return ELSEWHERE
        if _differ(self.zone, other.zone):
            return SAME_DATACENTER
        if self.rack and self.rack == other.rack:
            return SAME_RACK
        return SAME_ZONE if self.zone and self.zone == other.zone else SAME_DATACENTER

    def crosses(self, other: Place) -> int:
        """0 if ``other`` may be in the same zone, 1 if it is certainly in another zone, 2 if in another datacenter."""
        return 2 if _differ(self.datacenter, other.datacenter) else int(_differ(self.zone, other.zone))

    def is_far(self, other: Place) -> bool:
        """Whether ``other`` is certainly in another zone or datacenter."""
        return self.crosses(other) > 0

    def encode(self) -> bytes:
        """The place for other nodes; empty if nothing is known."""
        return str(self).encode()


NOWHERE = Place()
"""The place of which nothing is known; all functions of this module give this object for it."""


class Here:
    """The place of this node. It may become known after the start, because Consul may answer late."""

    def __init__(self, place: Place = NOWHERE) -> None:
        self._place = place
        self.watchers: set[Callable[[], None]] = set()
        """Called when the place has changed."""

    @property
    def place(self) -> Place:
        """The present place."""
        return self._place

    @place.setter
    def place(self, place: Place) -> None:
        if place != self._place:
            self._place = place
            for each in list(self.watchers):
                each()


def parse_place(text: str) -> Place:
    """The place in ``zone``, ``datacenter/zone`` or ``datacenter/zone/rack``; NOWHERE for an empty text.

    A name may be empty. So is ``${meta.zone}``, which Nomad leaves as it is on a node that does not have the metadata.
    Raises ValueError with a message for people.
    """
    names = ["" if _UNSET.match(name) else name for name in text.strip().split("/", 3)]
    if len(names) > 3:
        raise ValueError(f"{_short(text)} has too many parts: give ZONE, DATACENTER/ZONE or DATACENTER/ZONE/RACK")
    for name in filter(None, names):
        if len(name) > MAX_NAME:
            raise ValueError(f"the name {_short(name)} has {len(name)} characters: at most {MAX_NAME} are allowed")
        if not _NAME.match(name):
            raise ValueError(f"the name {_short(name)} has a character that is not allowed: use {_ALLOWED}")
    return (Place(zone=names[0]) if len(names) == 1 else Place(*names)) or NOWHERE


def known_name(text: object) -> str:
    """``text`` if it is the name of a place, else "", for names that other programs give."""
    return text if isinstance(text, str) and _NAME.match(text) else ""


def decode_place(raw: bytes) -> Place:
    """The place that another node told. Names that are none, and texts that are too long, are left out."""
    return _decode_known_place(raw) if len(raw) <= _LONGEST_WIRE else NOWHERE


@lru_cache(maxsize=4096)
def _decode_known_place(raw: bytes) -> Place:
    # remembered, so that the thousands of members of one zone share one object
    names = raw.decode("ascii", "replace").split("/")
    return (Place(*map(known_name, names)) if len(names) <= 3 else NOWHERE) or NOWHERE


def _differ(one: str, other: str) -> bool:
    return bool(one and other and one != other)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
