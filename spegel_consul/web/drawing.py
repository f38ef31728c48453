"""Geometry of the two drawings of the status page: the ring, and the phases of a request.

The results are numbers and texts; the templates escape them and render SVG. A new drawing belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spegel_consul.web import formatting
from spegel_consul.web.node_views import Document

RADIUS = 100.0
MOST_DOTS = 24
"""Up to this number, each member has a dot and a name; more members are counted by sectors of the circle."""

SECTORS = 60
_TALLEST = 18.0  # height of the fullest sector's bar
_SENDERS = _DEAD = 5  # members of each kind that have dots in a ring of sectors
_LABEL_GAP = 17.0
_LABEL_AT = RADIUS + 26
_LABEL_LENGTH = 14


@dataclass(frozen=True, slots=True)
class Dot:
    """A member on the circle, centre 0, radius 100. ``label``: the position of its name, None without one.

    ``flow`` (0 to 1) is its share of the bytes that came from peers.
    """

    name: str
    state: str
    leader: bool
    x: float
    y: float
    title: str
    flow: float = 0.0
    label: tuple[float, float] | None = None
    anchor: str = "start"

    @property
    def short(self) -> str:
        """The name, elided to the width of a label."""
        return formatting.elided(self.name, _LABEL_LENGTH)


@dataclass(frozen=True, slots=True)
class Sector:
    """The members of one sector, as two bars outside of the circle: corners of polygons, "" for none."""

    alive: str
    dead: str
    title: str


@dataclass(frozen=True, slots=True)
class Ring:
    """The drawing of the ring. ``title``: its text alternative; ``trouble``: number of dead or missing members."""

    dots: Sequence[Dot]
    sectors: Sequence[Sector]
    alive: int
    trouble: int
    title: str


def ring(peers: Sequence[Document], received: Mapping[str, int]) -> Ring:
    """The drawing of ``peers``; ``received`` are bytes by ``host:port`` of the registry that sent them."""
    all_bytes = sum(received.values())
    placed = [peer for peer in peers if peer["at"] is not None]
    dots = [_dot(peer, float(peer["at"]), RADIUS, received, all_bytes) for peer in placed]
    alive = sum(peer["state"] in ("self", "alive") for peer in peers)
    trouble = len(peers) - alive
    if len(peers) > MOST_DOTS:
        leader = next((f", {dot.name} leads" for dot in dots if dot.leader), "")
        title = f"{alive} members alive, {trouble} dead or missing{leader}"
        return Ring(_labelled(_notable(dots), _LABEL_AT + 6), _sectors(placed), alive, trouble, title)
    # a member that only the catalog has, has no known position: it is drawn above the circle's top
    unplaced = [peer for peer in peers if peer["at"] is None]
    dots += [
        _dot(peer, (number - (len(unplaced) - 1) / 2) * 0.03, RADIUS + 14, received, all_bytes)
        for number, peer in enumerate(unplaced)
    ]
    return Ring(_labelled(dots, _LABEL_AT), [], alive, trouble, "; ".join(dot.title for dot in dots))


def _dot(peer: Document, at: float, radius: float, received: Mapping[str, int], all_bytes: int) -> Dot:
    name = peer["node"] or f"…{str(peer['id'])[-8:]}"
    x, y = _point(at, radius)
    state = str(peer["state"])
    title = f"{name}, {'this node' if state == 'self' else state}{', leader' if peer['leader'] else ''}"
    flow = received.get(str(peer["registry"]), 0) / all_bytes if all_bytes else 0.0
    return Dot(str(name), state, bool(peer["leader"]), x, y, title, round(flow, 3))


def _notable(dots: Sequence[Dot]) -> list[Dot]:
    """The dots in a ring of sectors: this node, the leader, the largest senders and some dead members."""
    senders = sorted((dot for dot in dots if dot.flow), key=lambda dot: -dot.flow)[:_SENDERS]
    dead = [dot for dot in dots if dot.state == "dead"][:_DEAD]
    always = [dot for dot in dots if dot.leader or dot.state == "self"]
    return list(dict.fromkeys([*dead, *senders, *always]))


def _sectors(placed: Sequence[Document]) -> list[Sector]:
    counts = [[0, 0] for _ in range(SECTORS)]
    for peer in placed:
        counts[int(float(peer["at"]) * SECTORS) % SECTORS][peer["state"] == "dead"] += 1
    scale = _TALLEST / max(sum(count) for count in counts)
    found = []
    for number, (alive, dead) in enumerate(counts):
        foot = RADIUS + 3
        top = foot + alive * scale
        title = f"{alive} members" + (f", and {dead} dead" if dead else "")
        found.append(Sector(_bar(number, foot, top), _bar(number, top, top + dead * scale), title))
    return found


def _bar(number: int, foot: float, top: float) -> str:
    if top == foot:
        return ""
    left, right = (number + 0.1) / SECTORS, (number + 0.9) / SECTORS
    corners = _point(left, foot), _point(left, top), _point(right, top), _point(right, foot)
    return " ".join(f"{x},{y}" for x, y in corners)


def _point(at: float, radius: float) -> tuple[float, float]:
    """The point at ``at`` (0 to 1, clockwise from the top) at a distance from the centre."""
    angle = 2 * math.pi * at
    return round(radius * math.sin(angle), 1), round(-radius * math.cos(angle), 1)


def _labelled(dots: Sequence[Dot], distance: float) -> list[Dot]:
    """The dots with labels beside the circle, on the side of their dots, without overlap."""
    found = []
    for side, anchor in ((1, "start"), (-1, "end")):
        here = sorted((dot for dot in dots if (dot.x >= 0) == (side == 1)), key=lambda dot: dot.y)
        heights = _spread([dot.y for dot in here], _LABEL_GAP)
        for dot, height in zip(here, heights, strict=True):
            found.append(replace(dot, label=(side * distance, round(height, 1)), anchor=anchor))
    return found


def _spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Sorted heights, moved by the smallest distances that give ``gap`` between them."""
    # labels that would overlap form a group around the mean of their wanted heights
    groups: list[tuple[list[float], float]] = []
    for height in wanted:
        members, centre = [height], height
        while groups and groups[-1][1] + len(groups[-1][0]) * gap / 2 > centre - len(members) * gap / 2:
            before, _ = groups.pop()
            members = before + members
            centre = sum(members) / len(members)
        groups.append((members, centre))
    return [
        centre + (number - (len(members) - 1) / 2) * gap for members, centre in groups for number in range(len(members))
    ]


PHASES = ("lookup", "connect", "wait", "hold", "stream")
"""The phases of a mirrored request: the lookup of a peer, the connection, the wait for the first byte, the hold of the
bytes until they are verified, and the stream to the client."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One phase: ``x`` and ``width`` are in per cent of the widest row, ``ms`` is its duration."""

    phase: str
    x: float
    width: float
    ms: float


def waterfall(request: Document, widest: float) -> list[Bar]:
    """The phases of one request of ``/api/requests``; ``widest``: the time in ms that fills the row."""
    end = float(request["done_ms"] or request["elapsed_ms"])
    # a phase that was skipped (the peer was known, the connection was open) takes no time
    marks = [request["asked_ms"] or request["lookup_ms"], request["connect_ms"], request["first_byte_ms"]]
    marks.append(request["verified_ms"])
    if not any(marks):
        return _bars([("lookup", 0.0, end)], widest)
    steps, before = [], 0.0
    for phase, mark in zip(PHASES, [*marks, end], strict=True):
        if mark is not None and mark > before:
            steps.append((phase, before, float(mark)))
            before = float(mark)
    return _bars(steps, widest)


def pieces(measured: Document) -> list[list[Bar]]:
    """One row of phases for each piece of a measurement."""
    rows = measured["pieces"]
    widest = max((float(piece["done_ms"] or piece["first_byte_ms"]) for piece in rows), default=1.0)
    return [
        _bars(
            [
                ("wait", float(piece["started_ms"]), float(piece["first_byte_ms"])),
                ("stream", float(piece["first_byte_ms"]), float(piece["done_ms"] or piece["first_byte_ms"])),
            ],
            widest,
        )
        for piece in rows
    ]


def _bars(steps: Sequence[tuple[str, float, float]], widest: float) -> list[Bar]:
    scale = 100 / widest if widest > 0 else 0.0
    found = []
    for phase, start, stop in steps:
        x = min(99.4, start * scale)
        found.append(
            Bar(phase, round(x, 2), round(max(0.6, min(100 - x, (stop - start) * scale)), 2), round(stop - start, 2))
        )
    return found
