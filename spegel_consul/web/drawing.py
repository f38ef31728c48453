"""Geometry of the drawings of the pages: the ring, the phases of a request, sparklines, the spread of an image.

The results are numbers and texts; the templates escape them and render SVG. A new drawing belongs here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from spegel_consul.lean.dataclass import dataclass
from spegel_consul.web import formatting
from spegel_consul.web.node_views import Document

RADIUS = 100.0
MOST_DOTS = 24
"""Up to this number, each member has a dot and a name; of more members only some have, and each is in a tick."""

MOST_TICKS = 180
_TICK = 12.0  # length of a tick
_STATES = ("alive", "self", "missing", "dead")  # the last one of a tick's members colours it
_SENDERS = _DEAD = 5  # members of each kind that have dots in a ring of ticks
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
class Tick:
    """A line across the circle for some members in a row, with the state of the worst of them."""

    x1: float
    y1: float
    x2: float
    y2: float
    state: str


@dataclass(frozen=True, slots=True)
class Ring:
    """The drawing of the ring. ``title``: its text alternative; ``trouble``: number of dead or missing members.

    ``each``: the largest number of members in a tick.
    """

    dots: Sequence[Dot]
    ticks: Sequence[Tick]
    each: int
    alive: int
    trouble: int
    title: str


def ring(peers: Sequence[Document], received: Mapping[str, int]) -> Ring:
    """The drawing of ``peers``; ``received`` are bytes by ``host:port`` of the registry that sent them.

    Members are placed in their order in the ring, at equal distances, because positions by their hashes would lie on
    each other. Members that only the catalog has, which have no position, come last.
    """
    all_bytes = sum(received.values())
    placed = sorted(peers, key=lambda peer: math.inf if peer["at"] is None else float(peer["at"]))
    alive = sum(peer["state"] in ("self", "alive") for peer in peers)
    trouble, count = len(peers) - alive, max(1, len(placed))
    dots = [_dot(peer, number / count, RADIUS, received, all_bytes) for number, peer in enumerate(placed)]
    if len(peers) > MOST_DOTS:
        leader = next((f", {formatting.elided(dot.name, 60)} leads" for dot in dots if dot.leader), "")
        title = f"{alive} members alive, {trouble} dead or missing{leader}"
        ticks, each = _ticks([dot.state for dot in dots])
        return Ring(_labelled(_notable(dots), _LABEL_AT + 6), ticks, each, alive, trouble, title)
    return Ring(_labelled(dots, _LABEL_AT), [], 1, alive, trouble, "; ".join(dot.title for dot in dots))


def _dot(peer: Document, at: float, radius: float, received: Mapping[str, int], all_bytes: int) -> Dot:
    name = peer["node"] or f"…{str(peer['id'])[-8:]}"
    x, y = _point(at, radius)
    state = str(peer["state"])
    leads = ", leader" if peer["leader"] else ""
    title = f"{formatting.elided(str(name), 100)}, {'this node' if state == 'self' else state}{leads}"
    flow = received.get(str(peer["registry"]), 0) / all_bytes if all_bytes else 0.0
    return Dot(str(name), state, bool(peer["leader"]), x, y, title, round(flow, 3))


def _notable(dots: Sequence[Dot]) -> list[Dot]:
    """The dots in a ring of ticks: this node, the leader, the largest senders and some dead members."""
    senders = sorted((dot for dot in dots if dot.flow), key=lambda dot: -dot.flow)[:_SENDERS]
    dead = [dot for dot in dots if dot.state == "dead"][:_DEAD]
    always = [dot for dot in dots if dot.leader or dot.state == "self"]
    return list(dict.fromkeys([*dead, *senders, *always]))


def _ticks(states: Sequence[str]) -> tuple[list[Tick], int]:
    """The ticks of all members in their order, and the largest number of members in one."""
    count = min(MOST_TICKS, len(states))
    found, each = [], 0
    for number in range(count):
        members = states[number * len(states) // count : (number + 1) * len(states) // count]
        inner, outer = _point(number / count, RADIUS - _TICK / 2), _point(number / count, RADIUS + _TICK / 2)
        found.append(Tick(*inner, *outer, max(members, key=_STATES.index)))
        each = max(each, len(members))
    return found, each


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


SPARK_HEIGHT = 24


def spark(values: Sequence[float]) -> str:
    """The path of a sparkline: a bar for each value, 1 wide, in a box of so many by :data:`SPARK_HEIGHT`."""
    most = max(values, default=0.0)
    steps = []
    for number, value in enumerate(values):
        if value > 0:
            height = max(1.0, round(value / most * SPARK_HEIGHT, 1))
            steps.append(f"M{number + 0.1:g} {SPARK_HEIGHT}v-{height:g}h.8v{height:g}z")
    return "".join(steps)


MOST_CELLS = 120


def spread(nodes: Sequence[int], count: int) -> tuple[int, str]:
    """The width and the path of the strip of an image, which is 1 high.

    ``nodes``: the numbers of the nodes that have the image, of ``count``. A cell stands for one node, or for some in a
    row, and is as high as the share of them that have it.
    """
    cells = max(1, min(MOST_CELLS, count))
    having = [0] * cells
    for node in nodes:
        having[node * cells // count] += 1
    steps = []
    for cell, found in enumerate(having):
        whole = _first(cell + 1, count, cells) - _first(cell, count, cells)
        if found:
            height = round(min(1.0, found / max(1, whole)), 2)
            steps.append(f"M{cell + 0.06:g} 1v-{height:g}h.88v{height:g}z")
    return cells, "".join(steps)


def _first(cell: int, count: int, cells: int) -> int:
    """The first of ``count`` nodes in a cell."""
    return -(-cell * count // cells)
